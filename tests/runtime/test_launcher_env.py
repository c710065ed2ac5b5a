"""Launchers' environment variables, read the same way on every host."""

import pytest

from dpwatch.runtime import launcher_env

TORCHRUN = {
    "GROUP_WORLD_SIZE": "4",
    "WORLD_SIZE": "8",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29500",
}


def test_torchruns_first_node_is_the_head_and_all_agree_on_its_port():
    first = launcher_env.head_place({**TORCHRUN, "GROUP_RANK": "0"}, "run")
    third = launcher_env.head_place({**TORCHRUN, "GROUP_RANK": "2"}, "run")
    assert (first.host, first.here) == ("node0", True)
    assert (third.host, third.here) == ("node0", False)
    assert first.port == third.port
    assert launcher_env.FIRST_PORT <= first.port < launcher_env.FIRST_PORT + launcher_env.PORTS
    assert launcher_env.head_place({**TORCHRUN, "GROUP_RANK": "2"}, "other").port != first.port


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "node0"},
        {**TORCHRUN, "GROUP_WORLD_SIZE": "1", "GROUP_RANK": "0"},
        {"WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1"},
        {"SLURM_STEP_NUM_NODES": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "node0"},
    ],
)
def test_one_host_has_no_head(env):
    assert launcher_env.head_place(env, "run") is None
    assert launcher_env.variables_for_hub(env) == {}


def test_one_rank_per_container_is_multi_host():
    env = {"WORLD_SIZE": "2", "MASTER_ADDR": "job-0.job", "RANK": "0"}
    assert launcher_env.head_place(env, "run").here
    assert not launcher_env.head_place({**env, "RANK": "1"}, "run").here


def test_a_hub_knows_its_node_without_a_rank():
    env = {"WORLD_SIZE": "2", "MASTER_ADDR": "job-0.job", "RANK": "1"}
    left = {"MASTER_ADDR": "job-0.job", **launcher_env.variables_for_hub(env)}
    assert launcher_env.head_place(left, "run") == launcher_env.head_place(env, "run")


@pytest.mark.parametrize(
    ("named", "host", "port"),
    [
        ("node7:4000", "node7", 4000),
        ("node7", "node7", None),
        ("[fd00::1]:4000", "fd00::1", 4000),
        ("fd00::1", "fd00::1", None),
    ],
)
def test_a_head_given_by_name(named, host, port):
    place = launcher_env.head_place({"DPWATCH_HEAD": named, "GROUP_RANK": "3"}, "run")
    assert place.host == host
    assert port in (None, place.port)


def test_a_named_head_is_here_if_the_address_is():
    assert launcher_env.head_place({"DPWATCH_HEAD": "127.0.0.1:4000"}, "run").here
    assert not launcher_env.head_place({"DPWATCH_HEAD": "192.0.2.1:4000"}, "run").here


@pytest.mark.parametrize("named", ["node:", ":4000", "node:port", "node:99999"])
def test_an_invalid_head_address_is_refused(named):
    with pytest.raises(ValueError, match="DPWATCH_HEAD"):
        launcher_env.head_place({"DPWATCH_HEAD": named}, "run")


def test_an_unknown_host_of_rank_0_is_reported():
    with pytest.raises(ValueError, match="set DPWATCH_HEAD"):
        launcher_env.head_place({"SLURM_STEP_NUM_NODES": "2"}, "run")


@pytest.mark.parametrize(
    ("nodes_told", "first"),
    [
        ("", ""),
        ("node7", "node7"),
        ("node7,node9", "node7"),
        ("node[01-04,7],gpu2", "node01"),
        ("node[3,7]", "node3"),
        ("rack[1-2]-n,other", "rack1-n"),
    ],
)
def test_the_first_host_of_a_slurm_list(nodes_told, first):
    assert launcher_env.first_host(nodes_told) == first


def test_a_slurm_step_whose_script_names_no_master():
    env = {"SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "n[4-5]", "SLURM_NODEID": "1"}
    place = launcher_env.head_place(env, "run")
    assert (place.host, place.here) == ("n4", False)
