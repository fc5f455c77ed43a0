//! What a trace knows of one target: its books and its stacks. Live tracing and a recording fill it alike.

mod codes;

use hashbrown::HashMap;

pub use codes::Codes;

use crate::ledger::{Ledger, SizeLimits};
use crate::model::{Content, Event, Mapping, NormalizedStack};
use crate::normalize;

/// The books of one image of a process.
pub struct Trace {
    /// Allocations and frees.
    pub ledger: Ledger,
    /// Stacks by the id that events carry.
    pub stacks: HashMap<u64, NormalizedStack>,
    /// The Python code objects that the stacks name.
    pub codes: Codes,
    /// What is in blocks, by the number that events name less one.
    pub contents: Vec<Content>,
    limits: SizeLimits,
}

impl Trace {
    /// An empty trace that enters blocks within `limits`.
    pub fn new(limits: SizeLimits) -> Self {
        Self {
            ledger: Ledger::new(limits),
            stacks: HashMap::new(),
            codes: Codes::default(),
            contents: Vec::new(),
            limits,
        }
    }

    /// Enters one event; stacks are placed in `mappings`, and name the code objects known by now. After an
    /// `exec` nothing of before is left.
    pub fn apply(&mut self, event: &Event, mappings: &[Mapping]) {
        match event {
            Event::Stack(raw) => {
                let stack = normalize::stack(mappings, |addr| self.codes.at(addr), raw);
                self.stacks.insert(raw.id, stack);
            }
            Event::Code(raw) => self.codes.add(raw),
            Event::Exec(_) => *self = Self { ledger: self.ledger.of_next_image(), ..Self::new(self.limits) },
            _ => self.ledger.apply(event),
        }
    }
}

#[cfg(test)]
mod tests {
    use tracer_common::event::{Asked, Header, WalkEnd};
    use tracer_common::frame;

    use super::codes::tests::code;
    use super::*;
    use crate::model::{CodeAddr, RawStack};

    fn stack(id: u64) -> Event {
        let words = [frame::python(0x1000, 2)].into();
        Event::Stack(RawStack {
            header: Header::default(),
            id,
            end: WalkEnd::Complete,
            asked: Asked::Unknown,
            words,
        })
    }

    #[test]
    fn a_stack_names_the_code_object_that_was_there_when_it_came() {
        let mut trace = Trace::new(SizeLimits::ALL);
        let name = |trace: &mut Trace, id| {
            trace.apply(&stack(id), &[]);
            let CodeAddr::Python { code, unit: 2 } = trace.stacks[&id].frames[0] else {
                panic!("{:?}", trace.stacks[&id]);
            };
            code.map(|number| {
                String::from_utf8(trace.codes.get(number).unwrap().name.bytes.to_vec()).unwrap()
            })
        };
        assert_eq!(name(&mut trace, 1), None);
        trace.apply(&Event::Code(code(0x1000, "f")), &[]);
        assert_eq!(name(&mut trace, 2).as_deref(), Some("f"));
        trace.apply(&Event::Code(code(0x1000, "g")), &[]);
        assert_eq!(name(&mut trace, 3).as_deref(), Some("g"));
        // What came before keeps the name that it came with.
        assert_eq!(trace.stacks[&1].frames[0], CodeAddr::Python { code: None, unit: 2 });
        assert_eq!(trace.stacks[&2].frames[0], CodeAddr::Python { code: Some(0), unit: 2 });
        trace.apply(&Event::Exec(Header::default()), &[]);
        assert_eq!(name(&mut trace, 4), None);
        assert!(trace.codes.get(0).is_none());
    }
}
