//! Making frames independent of where things lie in the target, while that is known.

use tracer_common::frame::Frame;

use crate::model::{CodeAddr, Mapping, NormalizedStack, RawStack};

/// The place of a return address in `mappings`, which are sorted by start and do not overlap.
///
/// The byte before the return address decides, since a call may be the last instruction of a mapping.
pub fn place(mappings: &[Mapping], return_addr: u64) -> CodeAddr {
    match at(mappings, return_addr.saturating_sub(1)) {
        Some((mapping, _)) => CodeAddr::InFile {
            module: mapping.module,
            // A damaged recording may hold any number.
            offset: mapping.file_offset.wrapping_add(return_addr - mapping.start_addr),
        },
        None => CodeAddr::Unmapped { addr: return_addr },
    }
}

/// The place of an instruction that a signal interrupted.
pub fn interrupted(mappings: &[Mapping], addr: u64) -> CodeAddr {
    match at(mappings, addr) {
        Some((mapping, offset)) => CodeAddr::Interrupted { module: mapping.module, offset },
        None => CodeAddr::Unmapped { addr },
    }
}

/// The mapping that `addr` is in, and its offset in the file.
fn at(mappings: &[Mapping], addr: u64) -> Option<(&Mapping, u64)> {
    let behind = mappings.partition_point(|mapping| mapping.start_addr <= addr);
    let mapping = mappings.get(behind.checked_sub(1)?)?;
    let offset = mapping.file_offset.wrapping_add(addr - mapping.start_addr);
    (addr < mapping.end_addr).then_some((mapping, offset))
}

/// The stack with every frame placed; `code` gives the number of the code object that lies at an address.
pub fn stack(mappings: &[Mapping], code: impl Fn(u64) -> Option<u32>, raw: &RawStack) -> NormalizedStack {
    let normalized = |word: &u64| match Frame::from_word(*word) {
        Frame::Return(addr) => place(mappings, addr),
        Frame::Interrupted(addr) => interrupted(mappings, addr),
        Frame::Python { code_addr, unit } => CodeAddr::Python { code: code(code_addr), unit },
    };
    NormalizedStack {
        frames: raw.words.iter().map(normalized).collect(),
        words: raw.words.clone(),
        end: raw.end,
        asked: raw.asked,
    }
}

#[cfg(test)]
mod tests {
    use tracer_common::event::{Asked, Header, WalkEnd};
    use tracer_common::frame;

    use super::*;

    const MAPPINGS: [Mapping; 2] = [
        Mapping { start_addr: 0x1000, end_addr: 0x2000, file_offset: 0x400, module: 7 },
        Mapping { start_addr: 0x3000, end_addr: 0x4000, file_offset: 0, module: 8 },
    ];

    #[test]
    fn the_call_decides_where_a_return_address_is() {
        assert_eq!(place(&MAPPINGS, 0x1001), CodeAddr::InFile { module: 7, offset: 0x401 });
        // A call that ends its mapping returns to the address behind it.
        assert_eq!(place(&MAPPINGS, 0x2000), CodeAddr::InFile { module: 7, offset: 0x1400 });
        assert_eq!(place(&MAPPINGS, 0x3000), CodeAddr::Unmapped { addr: 0x3000 });
        assert_eq!(place(&MAPPINGS, 0x3001), CodeAddr::InFile { module: 8, offset: 1 });
        assert_eq!(place(&MAPPINGS, 0x5000), CodeAddr::Unmapped { addr: 0x5000 });
        assert_eq!(place(&[], 0), CodeAddr::Unmapped { addr: 0 });
    }

    #[test]
    fn each_kind_of_frame_has_its_place() {
        let words = [
            0x3000,
            frame::interrupted(0x3000),
            frame::interrupted(0x5000),
            frame::python(0x7000, 3),
            frame::python(0x7008, 4),
        ];
        let (end, asked) = (WalkEnd::Complete, Asked::Unknown);
        let raw = RawStack { header: Header::default(), id: 1, end, asked, words: words.into() };
        let stack = stack(&MAPPINGS, |addr| (addr == 0x7000).then_some(5), &raw);
        let expected = [
            CodeAddr::Unmapped { addr: 0x3000 },
            CodeAddr::Interrupted { module: 8, offset: 0 },
            CodeAddr::Unmapped { addr: 0x5000 },
            CodeAddr::Python { code: Some(5), unit: 3 },
            CodeAddr::Python { code: None, unit: 4 },
        ];
        assert_eq!(*stack.frames, expected);
        assert_eq!(*stack.words, words);
    }
}
