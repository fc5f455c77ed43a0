//! The call instructions in a range of code.

use iced_x86::{Decoder, DecoderOptions, Instruction};

use super::image::CodeSegment;

/// Decodes ranges of one segment.
pub(super) struct CodeReader<'a> {
    decoder: Decoder<'a>,
    addr: u64,
    end_addr: u64,
}

impl<'a> CodeReader<'a> {
    /// A reader of `segment`.
    pub(super) fn new(segment: &CodeSegment<'a>) -> Self {
        Self {
            decoder: Decoder::with_ip(64, segment.bytes, segment.addr, DecoderOptions::NONE),
            addr: segment.addr,
            end_addr: segment.end_addr(),
        }
    }

    /// Decodes the instructions that start in `start_addr..end_addr`, one behind the other.
    /// What is outside the segment is left out.
    pub(super) fn instructions(
        &mut self,
        start_addr: u64,
        end_addr: u64,
        mut each: impl FnMut(&Instruction),
    ) {
        let end_addr = end_addr.min(self.end_addr);
        if start_addr < self.addr || start_addr >= end_addr {
            return;
        }
        let Ok(position) = usize::try_from(start_addr - self.addr) else {
            return;
        };
        if self.decoder.set_position(position).is_err() {
            return;
        }
        self.decoder.set_ip(start_addr);
        let mut instruction = Instruction::default();
        while self.decoder.ip() < end_addr && self.decoder.can_decode() {
            self.decoder.decode_out(&mut instruction);
            each(&instruction);
        }
    }
}

/// Whether the instruction pushes a return address in 64-bit code.
pub(super) fn is_call(instruction: &Instruction) -> bool {
    instruction.is_call_near() || instruction.is_call_near_indirect()
}
