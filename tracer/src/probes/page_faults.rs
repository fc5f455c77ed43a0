//! The kernel's tracepoints of page faults: those of all processes. What is not of a target is left at once.
//!
//! Its events of page faults (perf) would tell no fault that ends in a signal, but took three times as much of every
//! fault of the machine, measured on Linux 6.18; those of one process alone, whenever one of its threads is switched.

use std::time::Duration;

use aya::maps::{Array, MapData};
use aya::programs::RawTracePoint;

use super::kernel::{Kernel, KernelError};
use super::task_layout;

/// The program.
const PROGRAM: &str = "page_fault";

/// The tracepoints that it sits on.
const EVENTS: [&str; 2] = ["page_fault_user", "page_fault_kernel"];

/// The map by which it is told what to trace, and that by which it tells what that takes.
const LIMIT: &str = "PAGE_LIMIT";
const TIME: &str = "PAGE_FAULT_TIME";

/// Page faults that are watched, until the kernel side goes.
pub struct PageFaultEvents {
    limit: Array<MapData, u64>,
    time_ns: Array<MapData, u64>,
}

impl PageFaultEvents {
    /// Watches the page faults of all targets. None is traced until a limit is set.
    ///
    /// # Errors
    /// When the kernel refuses the program: it needs Linux 5.15, and the kernel's own types (BTF).
    pub fn watch(kernel: &mut Kernel) -> Result<Self, KernelError> {
        let known = task_layout::read();
        if known.pagefault_disabled == 0 || known.flags == 0 {
            return Err(KernelError::NoTypes("page faults"));
        }
        let (limit, time_ns) = (kernel.take_array(LIMIT)?, kernel.take_array(TIME)?);
        let failed = |source| KernelError::Program { name: PROGRAM, source };
        let program: &mut RawTracePoint = kernel
            .ebpf_mut()
            .program_mut(PROGRAM)
            .and_then(|program| program.try_into().ok())
            .ok_or(KernelError::Missing(PROGRAM))?;
        program.load().map_err(failed)?;
        for event in EVENTS {
            program.attach(event).map_err(failed)?;
        }
        Ok(Self { limit, time_ns })
    }

    /// Traces from now on the faults of pages whose lot is below `limit` ([`tracer_common::page`]).
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn set_limit(&mut self, limit: u64) -> Result<(), KernelError> {
        self.limit.set(0, limit, 0).map_err(|source| KernelError::Map { name: LIMIT, source })
    }

    /// What tracing faults has taken of the targets' time so far.
    pub fn taken(&self) -> Duration {
        Duration::from_nanos(self.time_ns.get(&0, 0).unwrap_or(0))
    }
}
