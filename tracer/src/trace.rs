//! What a trace knows of one target: its books and its stacks. Live tracing and a recording fill it alike.

use hashbrown::HashMap;

use crate::ledger::{Ledger, SizeLimits};
use crate::model::{Event, Mapping, NormalizedStack};
use crate::normalize;

/// The books of one image of a process.
pub struct Trace {
    /// Allocations and frees.
    pub ledger: Ledger,
    /// Stacks by the id that events carry.
    pub stacks: HashMap<u64, NormalizedStack>,
    limits: SizeLimits,
}

impl Trace {
    /// An empty trace that enters blocks within `limits`.
    pub fn new(limits: SizeLimits) -> Self {
        Self { ledger: Ledger::new(limits), stacks: HashMap::new(), limits }
    }

    /// Enters one event; stacks are placed in `mappings`. After an `exec` nothing of before is left.
    pub fn apply(&mut self, event: &Event, mappings: &[Mapping]) {
        match event {
            Event::Stack(raw) => {
                self.stacks.insert(raw.id, normalize::stack(mappings, raw));
            }
            Event::Exec(_) => *self = Self::new(self.limits),
            _ => self.ledger.apply(event),
        }
    }
}
