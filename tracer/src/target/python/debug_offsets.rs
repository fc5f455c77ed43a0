//! What an interpreter since 3.13 tells of itself: `_Py_DebugOffsets`, the first bytes of `_PyRuntime`.
//!
//! It is a constant of the file. The struct grew with each version: where its groups begin was read from
//! `Include/internal/pycore_debug_offsets.h` of Debian's 3.13.18, 3.14.10 and 3.15.2. It tells neither where
//! the thread's state is kept nor `co_flags`, `co_kwonlyargcount`, `co_version` and `_co_firsttraceable`, which
//! lie beside fields that it does tell in each of these versions.

use super::versions::{BytecodeOffsets, Offsets};

/// Bytes of the struct that are looked at: all of 3.15's.
pub(super) const BYTES: u64 = 888;

/// Where the groups begin, and the fields that moved within theirs.
struct Groups {
    thread_state: usize,
    thread_id: usize,
    base_frame: Option<usize>,
    frame: usize,
    /// In the group of frames, where it is told.
    tlbc_index: Option<usize>,
    code: usize,
    object: usize,
    bytes: usize,
    unicode: usize,
}

const PY313: Groups = Groups {
    thread_state: 152,
    thread_id: 40,
    base_frame: None,
    frame: 224,
    tlbc_index: None,
    code: 272,
    object: 352,
    bytes: 512,
    unicode: 536,
};

const PY314: Groups = Groups {
    thread_state: 176,
    frame: 248,
    tlbc_index: Some(56),
    code: 312,
    object: 400,
    bytes: 592,
    unicode: 616,
    ..PY313
};

const PY315: Groups = Groups {
    thread_id: 64,
    base_frame: Some(40),
    frame: 312,
    code: 376,
    object: 464,
    bytes: 688,
    unicode: 712,
    ..PY314
};

/// Offset of the groups that are the same in each version.
const RUNTIME_STATE: usize = 24;
const INTERPRETER_STATE: usize = 48;

/// The offsets of Python 3.`minor`, as the struct at the start of `told` has them where it has them. `None`
/// where the version is not known, or what it says cannot be.
pub(super) fn offsets(told: &[u8], minor: u8, is_free_threaded: bool) -> Option<Offsets> {
    let mut offsets = Offsets::of(minor, is_free_threaded)?;
    let groups = match minor {
        13 => PY313,
        14 => PY314,
        15 => PY315,
        _ => return None,
    };
    let at = |group: usize, field: usize| {
        let bytes = told.get(group + field..)?.first_chunk()?;
        u16::try_from(u64::from_le_bytes(*bytes)).ok()
    };
    offsets.runtime.interpreters = at(RUNTIME_STATE, 16)?.into();
    offsets.thread.interpreter_next = at(INTERPRETER_STATE, 16)?;
    offsets.thread.interpreter_threads = at(INTERPRETER_STATE, 24)?;
    offsets.thread.next = at(groups.thread_state, 16)?;
    offsets.thread.frame = at(groups.thread_state, 32)?;
    offsets.thread.thread_id = at(groups.thread_state, groups.thread_id)?;
    offsets.thread.base_frame = groups.base_frame.map_or(Some(0), |field| at(groups.thread_state, field))?;
    offsets.frame.previous = at(groups.frame, 8)?;
    offsets.frame.code = at(groups.frame, 16)?;
    offsets.frame.instruction = at(groups.frame, 24)?;
    offsets.frame.owner = Some(at(groups.frame, 40)?);
    // Told as 0 by builds that have none.
    let tlbc_index = groups.tlbc_index.map_or(Some(0), |field| at(groups.frame, field))?;
    offsets.frame.tlbc_index = Some(tlbc_index).filter(|_| is_free_threaded && tlbc_index != 0);
    offsets.ob_type = at(groups.object, 8)?;
    offsets.ob_size = offsets.ob_type.checked_add(8)?;
    let code = |field| at(groups.code, field);
    offsets.code.file = code(8)?;
    offsets.code.name = code(24)?;
    offsets.code.table = code(32)?;
    offsets.code.first_line = code(40)?;
    offsets.code.version = Some(offsets.code.first_line.checked_add(24)?);
    let argcount = code(48)?;
    offsets.code.argcount = argcount;
    offsets.code.flags = argcount.checked_sub(4)?;
    offsets.code.kwonlyargcount = argcount.checked_add(8)?;
    let start = code(72)?;
    let tlbc = if offsets.frame.tlbc_index.is_some() { Some(code(80)?) } else { None };
    let extra = tlbc.unwrap_or(start).checked_sub(8)?;
    offsets.code.bytecode = Some(BytecodeOffsets { first_traceable: extra.checked_sub(8)?, tlbc, start });
    offsets.text.bytes_size = at(groups.bytes, 8)?;
    offsets.text.bytes_data = at(groups.bytes, 16)?;
    offsets.text.state = at(groups.unicode, 8)?;
    offsets.text.length = at(groups.unicode, 16)?;
    let ascii_data = at(groups.unicode, 24)?;
    offsets.text.ascii_data = ascii_data;
    // Behind a PyASCIIObject come the length of the UTF-8 text and its address.
    offsets.text.compact_data = ascii_data.checked_add(16)?;
    Some(offsets)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The struct as 3.`minor` has it, by its table.
    fn told(minor: u8, is_free_threaded: bool, groups: &Groups) -> Vec<u8> {
        let table = Offsets::of(minor, is_free_threaded).unwrap();
        let mut told = vec![0xee; BYTES as usize];
        let mut put = |group: usize, field: usize, value: u16| {
            told[group + field..][..8].copy_from_slice(&u64::from(value).to_le_bytes());
        };
        put(RUNTIME_STATE, 16, table.runtime.interpreters as u16);
        put(INTERPRETER_STATE, 16, table.thread.interpreter_next);
        put(INTERPRETER_STATE, 24, table.thread.interpreter_threads);
        put(groups.thread_state, 16, table.thread.next);
        put(groups.thread_state, 32, table.thread.frame);
        put(groups.thread_state, groups.thread_id, table.thread.thread_id);
        if let Some(field) = groups.base_frame {
            put(groups.thread_state, field, table.thread.base_frame);
        }
        put(groups.frame, 8, table.frame.previous);
        put(groups.frame, 16, table.frame.code);
        put(groups.frame, 24, table.frame.instruction);
        put(groups.frame, 40, table.frame.owner.unwrap());
        if let Some(field) = groups.tlbc_index {
            put(groups.frame, field, table.frame.tlbc_index.unwrap_or(0));
        }
        put(groups.object, 8, table.ob_type);
        put(groups.code, 8, table.code.file);
        put(groups.code, 24, table.code.name);
        put(groups.code, 32, table.code.table);
        put(groups.code, 40, table.code.first_line);
        put(groups.code, 48, table.code.argcount);
        let bytecode = table.code.bytecode.unwrap();
        put(groups.code, 72, bytecode.start);
        if groups.tlbc_index.is_some() {
            put(groups.code, 80, bytecode.tlbc.unwrap_or(0));
        }
        put(groups.bytes, 8, table.text.bytes_size);
        put(groups.bytes, 16, table.text.bytes_data);
        put(groups.unicode, 8, table.text.state);
        put(groups.unicode, 16, table.text.length);
        put(groups.unicode, 24, table.text.ascii_data);
        told
    }

    #[test]
    fn what_is_told_is_what_the_tables_say() {
        for (minor, groups) in [(13, PY313), (14, PY314), (15, PY315)] {
            for is_free_threaded in [false, true] {
                let told = told(minor, is_free_threaded, &groups);
                assert_eq!(
                    offsets(&told, minor, is_free_threaded),
                    Offsets::of(minor, is_free_threaded),
                    "3.{minor} {is_free_threaded}"
                );
                for cut in 0..told.len() {
                    // Never a panic.
                    let _ = offsets(&told[..cut], minor, is_free_threaded);
                }
            }
        }
        assert_eq!(offsets(&[0; 888], 12, false), None);
        assert_eq!(offsets(&[0xff; 888], 14, false), None);
        assert_eq!(offsets(&[0; 888], 14, false), None);
    }
}
