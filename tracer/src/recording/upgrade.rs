//! Records of earlier versions in the form of this one, so that nothing behind the reader knows of them.

use tracer_common::event::{Kind, STACK_RECORD_FIXED_BYTES};

use super::format::{RawRecords, push_record};

/// The first version whose stacks have a word for their Python code objects before the frames.
const FIRST_WITH_CODES: u32 = 3;

/// The content of a section of events of `version` in the form of the newest; records that are none stay as
/// they are.
pub(super) fn events(version: u32, content: Vec<u8>) -> Vec<u8> {
    if version >= FIRST_WITH_CODES {
        return content;
    }
    let mut upgraded = Vec::with_capacity(content.len() + content.len() / 8);
    let mut records = RawRecords::new(&content);
    for record in records.by_ref() {
        match stack(record) {
            Some(stack) => push_record(&mut upgraded, &stack),
            None => push_record(&mut upgraded, record),
        }
    }
    // What is cut is left for others to complain about.
    upgraded.extend_from_slice(records.rest());
    upgraded
}

/// A stack with the word that it lacks; `None` where `record` is no stack.
fn stack(record: &[u8]) -> Option<Vec<u8>> {
    const CODES_BYTES: usize = 8;
    let fixed_bytes = STACK_RECORD_FIXED_BYTES - CODES_BYTES;
    let (fixed, frames) = record.split_at_checked(fixed_bytes)?;
    (fixed[0] == Kind::Stack as u8).then(|| [fixed, &[0; CODES_BYTES], frames].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_stacks_of_earlier_versions_change() {
        let mut stack = vec![5_u8];
        stack.resize(16 + 8 + 8, 1);
        let release = [2_u8; 24];
        let mut content = Vec::new();
        push_record(&mut content, &[&stack[..], &[9; 16]].concat());
        push_record(&mut content, &release);
        push_record(&mut content, &[5; 31]);
        content.extend_from_slice(&[200, 0, 5]);
        assert_eq!(events(3, content.clone()), content);
        let upgraded = events(2, content);
        let mut records = RawRecords::new(&upgraded);
        let expected = [&stack[..], &[0; 8], &[9; 16]].concat();
        assert_eq!(records.by_ref().collect::<Vec<_>>(), [&expected[..], &release, &[5; 31]]);
        assert_eq!(records.rest(), [200, 0, 5]);
    }
}
