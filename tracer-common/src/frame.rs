//! One frame of a stack, as one word.
//!
//! | bits 63-62 | the word is |
//! |---|---|
//! | 00 | a return address |
//! | 01 | the address (bits 0-61) of the instruction at which a signal interrupted the thread |
//! | 1x | a Python frame: bits 19-62 the address of its code object / 8, bits 0-18 the code unit |

/// Marks a Python frame.
const PYTHON: u64 = 1 << 63;
/// Marks an address that is no return address.
const INTERRUPTED: u64 = 1 << 62;
/// Bits of a Python frame's code unit.
const UNIT_BITS: u32 = 19;

/// A code unit that is not known, or too large to be told.
pub const UNKNOWN_UNIT: u32 = (1 << UNIT_BITS) - 1;

/// The unit of a frame that has run no instruction yet: it is called, which a trace function may be told.
pub const NO_UNIT_YET: u32 = UNKNOWN_UNIT - 1;

/// A frame as it stands in a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Frame {
    /// Machine code: the address to which the call returns.
    Return(u64),
    /// Machine code: the address of the instruction that a signal interrupted.
    Interrupted(u64),
    /// A function of Python.
    Python {
        /// Address of its code object.
        code_addr: u64,
        /// Index of the instruction in its bytecode, in code units of 2 bytes; [`UNKNOWN_UNIT`], [`NO_UNIT_YET`].
        unit: u32,
    },
}

impl Frame {
    /// The frame that a word stands for.
    pub const fn from_word(word: u64) -> Self {
        if word & PYTHON != 0 {
            Self::Python {
                code_addr: (word & !PYTHON) >> UNIT_BITS << 3,
                unit: (word & UNKNOWN_UNIT as u64) as u32,
            }
        } else if word & INTERRUPTED != 0 {
            Self::Interrupted(word & !INTERRUPTED)
        } else {
            Self::Return(word)
        }
    }
}

/// The word of an interrupted frame.
#[inline(always)]
pub const fn interrupted(addr: u64) -> u64 {
    addr & !PYTHON | INTERRUPTED
}

/// The word of a Python frame. Code objects are aligned to 8 bytes.
#[inline(always)]
pub const fn python(code_addr: u64, unit: u32) -> u64 {
    let unit = if unit > UNKNOWN_UNIT { UNKNOWN_UNIT } else { unit };
    PYTHON | (code_addr >> 3) << UNIT_BITS & !PYTHON | unit as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_tell_the_kinds_of_frame_apart() {
        assert_eq!(Frame::from_word(0x7fff_ffff_f123), Frame::Return(0x7fff_ffff_f123));
        assert_eq!(Frame::from_word(interrupted(0x7fff_ffff_f123)), Frame::Interrupted(0x7fff_ffff_f123));
        for unit in [0, 1, NO_UNIT_YET, UNKNOWN_UNIT] {
            assert_eq!(
                Frame::from_word(python(0x7fff_ffff_fff8, unit)),
                Frame::Python { code_addr: 0x7fff_ffff_fff8, unit }
            );
        }
        assert_eq!(
            Frame::from_word(python(0x1000, 1 << 20)),
            Frame::Python { code_addr: 0x1000, unit: UNKNOWN_UNIT }
        );
    }
}
