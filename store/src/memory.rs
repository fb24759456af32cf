//! The in-memory twin: one store for tests and the simulator, on a given clock and with injected faults.
