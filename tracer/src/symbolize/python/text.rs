//! Texts of CPython: the three ways in which a `str` stores its characters (PEP 393).

use tracer_common::code::TextKind;

use crate::model::PythonText;

/// What stands for the rest of a text that was too long to be read whole.
const ELLIPSIS: char = '…';

/// The text; `None` where it was not read, or says nothing.
pub(super) fn decode(text: &PythonText) -> Option<String> {
    // A `str` may hold halves of surrogate pairs, each as a character, which are no characters elsewhere: a
    // file name has them for the bytes that are no UTF-8.
    let char = |code: u32| char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
    let chars: Vec<char> = match text.kind {
        TextKind::Unread => return None,
        TextKind::Latin1 => text.bytes.iter().map(|byte| char::from(*byte)).collect(),
        TextKind::Ucs2 => {
            let (units, _) = text.bytes.as_chunks::<2>();
            units.iter().map(|unit| char(u16::from_le_bytes(*unit).into())).collect()
        }
        TextKind::Ucs4 => {
            let (units, _) = text.bytes.as_chunks::<4>();
            units.iter().map(|unit| char(u32::from_le_bytes(*unit))).collect()
        }
    };
    let is_cut = chars.len() < text.chars as usize;
    let whole: String = chars.into_iter().chain(is_cut.then_some(ELLIPSIS)).collect();
    (!whole.is_empty()).then_some(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(kind: TextKind, chars: u32, bytes: &[u8]) -> Option<String> {
        decode(&PythonText { kind, chars, bytes: bytes.into() })
    }

    #[test]
    fn each_kind_is_read() {
        assert_eq!(text(TextKind::Latin1, 4, b"caf\xe9").as_deref(), Some("café"));
        let ucs2: Vec<u8> = "žluť".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(text(TextKind::Ucs2, 4, &ucs2).as_deref(), Some("žluť"));
        let ucs4: Vec<u8> = "f🐍".chars().flat_map(|c| u32::from(c).to_le_bytes()).collect();
        assert_eq!(text(TextKind::Ucs4, 2, &ucs4).as_deref(), Some("f🐍"));
    }

    #[test]
    fn what_is_cut_ends_in_an_ellipsis_and_what_is_missing_is_nothing() {
        assert_eq!(text(TextKind::Latin1, 300, b"abc").as_deref(), Some("abc…"));
        // Cut within a character.
        assert_eq!(text(TextKind::Ucs2, 2, &[0x61, 0, 0x62]).as_deref(), Some("a…"));
        assert_eq!(text(TextKind::Unread, 3, b"abc"), None);
        assert_eq!(text(TextKind::Latin1, 0, b""), None);
        // A lone surrogate, and what is no character at all.
        assert_eq!(text(TextKind::Ucs2, 2, &[0xff, 0xdc, 0x61, 0]).as_deref(), Some("\u{fffd}a"));
        assert_eq!(text(TextKind::Ucs4, 1, &[0xff; 4]).as_deref(), Some("\u{fffd}"));
    }
}
