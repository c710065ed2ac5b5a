"""The proof that dpwatch does no harm: `make harmless`.

Three parts. Each runs something without the probe and with it, and compares whatever a script could
notice.

- `ops`: torch's own samples of its operators, modules and optimizers, forward and backward, in a
  sampled and in an unsampled step (`op_cases`, `op_worker`, `ops`).
- `zoo`: whole scripts of many shapes, under `dpwatch run` and with `dpwatch.watch()` (`shapes`,
  `scripts/`, `zoo`).
- `long`: 100,000 steps in one process, and the probe opened and closed 500 times (`endurance`).

    python -m tests.harmless                      # all of it
    python -m tests.harmless --quick              # what CI runs
    python -m tests.harmless ops/prod zoo/lbfgs   # some rows
"""
