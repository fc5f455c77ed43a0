//! Texts: `str` objects, and C's.

use tracer_common::memory::ReadMemory as _;
use tracer_common::python::TextLayout;

use crate::target::ProcessMemory;

/// Most characters of a name.
const MAX_CHARS: u64 = 512;

/// The `str` at `addr`. `None` where it is none, or too long for a name.
pub(super) fn read_str(memory: &ProcessMemory, layout: &TextLayout, addr: u64) -> Option<String> {
    let at = |offset: u16| addr.wrapping_add(offset.into());
    let chars = memory.read_word(at(layout.length)).filter(|chars| *chars <= MAX_CHARS)?;
    let state = memory.read_word(at(layout.state))?;
    let is_set = |bit: u8| state >> bit & 1 != 0;
    if !is_set(layout.compact_bit) {
        return None;
    }
    let is_ascii = is_set(layout.compact_bit + 1);
    let data_addr = at(if is_ascii { layout.ascii_data } else { layout.compact_data });
    // `PyUnicode_1BYTE_KIND` and so on are the bytes of a character.
    let width = (state >> layout.kind_shift & 7) as usize;
    if !matches!(width, 1 | 2 | 4) {
        return None;
    }
    let bytes = memory.read_bytes(data_addr, chars as usize * width).ok()?;
    let code_point = |bytes: &[u8]| bytes.iter().rev().fold(0, |point, byte| point << 8 | u32::from(*byte));
    let character = |bytes: &[u8]| char::from_u32(code_point(bytes)).unwrap_or(char::REPLACEMENT_CHARACTER);
    Some(bytes.chunks_exact(width).map(character).collect())
}

/// The text of C at `addr`.
pub(super) fn read_c_text(memory: &ProcessMemory, addr: u64) -> Option<String> {
    let mut bytes = Vec::new();
    let mut at = addr & !7;
    while bytes.len() < MAX_CHARS as usize {
        bytes.extend(memory.read_word(at)?.to_le_bytes());
        let text = &bytes[(addr % 8) as usize..];
        if let Some(end) = text.iter().position(|byte| *byte == 0) {
            return String::from_utf8(text[..end].to_vec()).ok();
        }
        at += 8;
    }
    None
}
