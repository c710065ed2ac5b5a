"""The same script as TraceML's README has a plain loop instrumented."""

import peer_train
import traceml_ai as traceml

traceml.init(mode="auto")
peer_train.main(traceml.trace_step)
