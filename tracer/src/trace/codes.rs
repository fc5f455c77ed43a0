//! The Python code objects of one image of a process.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashMap, HashTable};

use crate::model::{PythonCode, RawCode};

/// Code objects by number, and which of them lies where.
///
/// A program that makes functions anew all the time makes many code objects of few kinds: those that say
/// the same have one number, so that memory grows with what is distinct.
#[derive(Default)]
pub struct Codes {
    list: Vec<PythonCode>,
    /// Numbers by what they stand for.
    numbers: HashTable<u32>,
    hasher: DefaultHashBuilder,
    by_addr: HashMap<u64, u32>,
}

impl Codes {
    /// Enters a code object: from now on it is what lies at its address.
    pub fn add(&mut self, raw: &RawCode) {
        let code = PythonCode::new(raw);
        let (list, hasher) = (&mut self.list, &self.hasher);
        let hash = hasher.hash_one(&code);
        let known = self.numbers.find(hash, |number| list[*number as usize] == code);
        let number = known.copied().unwrap_or_else(|| {
            let number = list.len() as u32;
            list.push(code);
            self.numbers.insert_unique(hash, number, |number| hasher.hash_one(&list[*number as usize]));
            number
        });
        self.by_addr.insert(raw.header.code_addr, number);
    }

    /// The number of the code object that lies at `addr`, where one was read there.
    pub fn at(&self, addr: u64) -> Option<u32> {
        self.by_addr.get(&addr).copied()
    }

    /// The code object with this number.
    pub fn get(&self, number: u32) -> Option<&PythonCode> {
        self.list.get(number as usize)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use tracer_common::code::{CodeHeader, TextKind};

    use super::*;

    /// A code object of this name.
    pub(in crate::trace) fn code(code_addr: u64, name: &str) -> RawCode {
        let header = CodeHeader {
            code_addr,
            name_kind: TextKind::Latin1 as u8,
            name_chars: name.len() as u32,
            ..CodeHeader::default()
        };
        RawCode { header, name: name.as_bytes().into(), file: [].into(), table: [].into() }
    }

    #[test]
    fn what_says_the_same_has_one_number() {
        let mut codes = Codes::default();
        for round in 0..100 {
            for (addr, name) in [(0x1000, "f"), (0x2000, "g")] {
                let mut again = code(addr + 0x100 * (round % 3), name);
                again.header.check = round;
                again.header.header.time_ns = round;
                codes.add(&again);
            }
        }
        assert_eq!(codes.list.len(), 2);
        assert_eq!((codes.at(0x1000), codes.at(0x1100), codes.at(0x2200)), (Some(0), Some(0), Some(1)));
        assert_eq!((codes.at(0x3000), codes.get(2)), (None, None));
        let mut other_line = code(0x1000, "f");
        other_line.header.first_line = 7;
        codes.add(&other_line);
        assert_eq!((codes.at(0x1000), codes.at(0x1100)), (Some(2), Some(0)));
    }
}
