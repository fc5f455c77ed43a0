//! Where the arguments of a USDT probe are, as user space has read it from the file and tells it to the kernel side.
//!
//! The description of operands is that of `sys/sdt.h` (SystemTap 4.8): a size in bytes, negative where the value is
//! signed, and an operand in the assembler's notation.

/// Arguments of a probe that are read, at most.
pub const MAX_ARGUMENTS: usize = 3;

/// Descriptions that differ, of all probes of a session.
pub const MAX_DESCRIPTIONS: u32 = 256;

/// Where one argument is. Plain integers: it lies in a map. All zeroes = the constant 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Operand {
    /// The constant, or what is added to the registers.
    pub value: u64,
    /// [`Operand::CONSTANT`], [`Operand::REGISTER`] or [`Operand::MEMORY`].
    pub kind: u8,
    /// The register, by its number in machine code: 0 = `rax`, 4 = `rsp`, 15 = `r15`.
    pub register: u8,
    /// A second register, which is added.
    pub index: u8,
    /// Factor to the second register; 0 where there is none.
    pub scale: u8,
    /// Bytes of the value: 1, 2, 4 or 8.
    pub bytes: u8,
    /// Whether it is signed, so that its highest bit goes on to the left.
    pub is_signed: u8,
    /// Zero.
    pub reserved: [u8; 2],
}

/// Where the arguments of a probe are. Behind the last come zeroes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arguments {
    /// In their order.
    pub operands: [Operand; MAX_ARGUMENTS],
}

const _: () = assert!(size_of::<Operand>() == 16 && size_of::<Arguments>() == 48);

impl Operand {
    /// The value itself.
    pub const CONSTANT: u8 = 0;
    /// In the register.
    pub const REGISTER: u8 = 1;
    /// In memory, at the sum of the registers and `value`.
    pub const MEMORY: u8 = 2;

    /// What `word` says, of which the lowest [`Operand::bytes`] count.
    #[inline(always)]
    pub const fn extend(&self, word: u64) -> u64 {
        let unused_bits = (64 - self.bytes as u32 * 8) & 63;
        let left = word << unused_bits;
        if self.is_signed != 0 {
            (left.cast_signed() >> unused_bits).cast_unsigned()
        } else {
            left >> unused_bits
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_has_as_many_bytes_as_it_is_said_to_have() {
        let operand =
            |bytes, is_signed: bool| Operand { bytes, is_signed: is_signed.into(), ..Operand::default() };
        let word = 0xfedc_ba98_8765_43f1;
        assert_eq!(operand(8, false).extend(word), word);
        assert_eq!(operand(8, true).extend(word), word);
        assert_eq!(operand(4, false).extend(word), 0x8765_43f1);
        assert_eq!(operand(4, true).extend(word), 0xffff_ffff_8765_43f1);
        assert_eq!(operand(2, true).extend(word), 0x43f1);
        assert_eq!(operand(1, false).extend(word), 0xf1);
        assert_eq!(operand(1, true).extend(word), 0xf1_u64 | !0xff);
    }
}
