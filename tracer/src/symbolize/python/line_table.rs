//! Line tables of code objects: which line of the source an instruction belongs to.
//!
//! Three forms, by version. Known from `Objects/lnotab_notes.txt` of 3.8 and 3.10 and
//! `Objects/locations.md` of 3.11 to 3.13 (`InternalDocs/code_objects.md` of 3.14), and compared with what
//! the interpreters themselves say: see the tests.

/// The line table of a code object.
#[derive(Clone, Copy, Debug)]
pub(super) struct LineTable<'a> {
    /// Minor version of the Python 3 that made it.
    pub minor: u8,
    /// `co_firstlineno`
    pub first_line: u32,
    /// As much of it as was read.
    pub bytes: &'a [u8],
    /// Whether that is all.
    pub is_whole: bool,
}

impl LineTable<'_> {
    /// The line of the instruction at code unit `unit` (2 bytes each); `None` where no line made it, or the
    /// table does not tell.
    pub fn line(&self, unit: u32) -> Option<u32> {
        let line = match self.minor {
            0..=9 => self.line_by_addresses(unit.checked_mul(2)?),
            10 => self.line_by_ranges(unit.checked_mul(2)?),
            _ => self.line_by_locations(unit),
        };
        line.and_then(|line| u32::try_from(line).ok())
    }

    /// Up to 3.9 (`co_lnotab`): pairs of how far the address and the line move on, the line signed. A line
    /// goes on up to the address of the first pair behind it, the last to the end of the code.
    fn line_by_addresses(&self, offset: u32) -> Option<i64> {
        let mut line = i64::from(self.first_line);
        let mut at = 0_u32;
        for [address_delta, line_delta] in self.bytes.as_chunks::<2>().0 {
            at = at.checked_add((*address_delta).into())?;
            if at > offset {
                return Some(line);
            }
            line += i64::from(*line_delta as i8);
        }
        self.is_whole.then_some(line)
    }

    /// 3.10 (`co_linetable`): pairs of the length of a range in bytes and how far its line is from the one
    /// before; -128 is a range without a line.
    fn line_by_ranges(&self, offset: u32) -> Option<i64> {
        const NO_LINE: i8 = -128;
        let mut line = i64::from(self.first_line);
        let mut end = 0_u32;
        for [length, line_delta] in self.bytes.as_chunks::<2>().0 {
            let line_delta = *line_delta as i8;
            if line_delta != NO_LINE {
                line += i64::from(line_delta);
            }
            end = end.checked_add((*length).into())?;
            if offset < end {
                return (line_delta != NO_LINE).then_some(line);
            }
        }
        None
    }

    /// From 3.11 on (the location table): entries of a first byte, whose upper bit is set, and what its
    /// form needs. They bear columns too, which are passed over.
    fn line_by_locations(&self, unit: u32) -> Option<i64> {
        let mut line = i64::from(self.first_line);
        let mut end = 0_u32;
        let mut bytes = self.bytes.iter().copied();
        while let Some(first) = bytes.next() {
            if first & 0x80 == 0 {
                return None;
            }
            let form = first >> 3 & 0xf;
            match form {
                // One line, columns in one byte more.
                0..=9 => drop(bytes.next()?),
                // Within one line, both columns in a byte each.
                10..=12 => {
                    line += i64::from(form - 10);
                    bytes.nth(1)?;
                }
                // A line alone.
                13 => line += signed(varint(&mut bytes)?),
                // Line, last line, both columns.
                14 => {
                    line += signed(varint(&mut bytes)?);
                    for _ in 0..3 {
                        varint(&mut bytes)?;
                    }
                }
                // No line; the next entry counts on from the one before.
                _ => {}
            }
            end = end.checked_add(u32::from(first & 7) + 1)?;
            if unit < end {
                return (form != 15).then_some(line);
            }
        }
        None
    }
}

/// A number of 6 bits a byte, the lowest first; bit 6 tells that more follow.
fn varint(bytes: &mut impl Iterator<Item = u8>) -> Option<u32> {
    let mut value = 0_u32;
    for shift in (0..u32::BITS).step_by(6) {
        let byte = bytes.next()?;
        value |= u32::from(byte & 0x3f) << shift;
        if byte & 0x40 == 0 {
            return Some(value);
        }
    }
    None
}

/// The sign is in the lowest bit.
fn signed(value: u32) -> i64 {
    let magnitude = i64::from(value >> 1);
    if value & 1 == 0 { magnitude } else { -magnitude }
}

#[cfg(test)]
mod tests;
