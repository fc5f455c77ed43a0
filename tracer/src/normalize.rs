//! Making code addresses independent of where files were loaded, while the mappings are known.

use crate::model::{CodeAddr, Mapping, NormalizedStack, RawStack};

/// The place of a return address in `mappings`, which are sorted by start and do not overlap.
///
/// The byte before the return address decides, since a call may be the last instruction of a mapping.
pub fn place(mappings: &[Mapping], return_addr: u64) -> CodeAddr {
    let call = return_addr.saturating_sub(1);
    let behind = mappings.partition_point(|mapping| mapping.start_addr <= call);
    match behind.checked_sub(1).and_then(|index| mappings.get(index)) {
        Some(mapping) if call < mapping.end_addr => CodeAddr::InFile {
            module: mapping.module,
            // A damaged recording may hold any number.
            offset: mapping.file_offset.wrapping_add(return_addr - mapping.start_addr),
        },
        _ => CodeAddr::Unmapped { addr: return_addr },
    }
}

/// The stack with every frame placed.
pub fn stack(mappings: &[Mapping], raw: &RawStack) -> NormalizedStack {
    NormalizedStack {
        frames: raw.return_addrs.iter().map(|addr| place(mappings, *addr)).collect(),
        return_addrs: raw.return_addrs.clone(),
        end: raw.end,
    }
}

/// Whether some frame lies in no mapping.
pub fn has_unmapped(stack: &NormalizedStack) -> bool {
    stack.frames.iter().any(|frame| matches!(frame, CodeAddr::Unmapped { .. }))
}

#[cfg(test)]
mod tests {
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
}
