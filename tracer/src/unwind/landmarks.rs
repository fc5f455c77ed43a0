//! Code that is known by its bytes, whatever describes it or does not. It is entered by a return, though nothing
//! called from there, and so it is looked up by the byte before it.

use std::ops::Range;

use memchr::memmem;
use tracer_common::unwind_table::Rule;

use super::functions::Function;
use super::image::CodeSegment;

/// The code that ends a signal handler, `mov $15, %rax; syscall` or the same by `%eax`: C libraries other
/// than glibc (musl), Go, and those who make system calls on their own leave it without a description.
const SIGNAL_RETURNS: [&[u8]; 2] =
    [&[0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05], &[0xb8, 15, 0, 0, 0, 0x0f, 0x05]];

/// The code that a function returns to which was begun by `makecontext` (glibc 2.36,
/// `sysdeps/unix/sysv/linux/x86_64/__start_context.S`): `mov %rbx, %rsp; mov (%rsp), %rdi; test %rdi, %rdi`.
/// Its description is that of a function that was called.
const CONTEXT_START: &[u8] = &[0x48, 0x89, 0xdc, 0x48, 0x8b, 0x3c, 0x24, 0x48, 0x85, 0xff];

/// The landing pad that may stand before it, `endbr64`.
const LANDING_PAD: &[u8] = &[0xf3, 0x0f, 0x1e, 0xfa];

/// A file has one such place, or a few. So many are believed.
const MAX_LANDMARKS: usize = 64;

/// Counts the landmarks of a file.
pub(super) struct Landmarks {
    left: usize,
}

impl Landmarks {
    /// None was found yet.
    pub(super) fn new() -> Self {
        Self { left: MAX_LANDMARKS }
    }

    /// Reports those in `segment`: offsets in the file, and the rule that is in force there.
    pub(super) fn find(
        &mut self,
        segment: &CodeSegment<'_>,
        functions: &[Function],
        mut each: impl FnMut(Range<u64>, Rule),
    ) {
        for code in SIGNAL_RETURNS {
            self.places(segment, code, |start, at| {
                each(start..at + code.len() as u64, Rule::SIGNAL_FRAME);
            });
        }
        self.places(segment, CONTEXT_START, |start, at| {
            let addr = at.wrapping_sub(segment.file_offset).wrapping_add(segment.addr);
            let behind = functions.partition_point(|function| function.start_addr <= addr);
            let function = behind.checked_sub(1).and_then(|index| functions.get(index));
            let function =
                function.filter(|function| (function.start_addr..function.end_addr).contains(&addr));
            let end = function.map_or(at + CONTEXT_START.len() as u64, |function| {
                segment.file_offset_of(function.end_addr.min(segment.end_addr()))
            });
            each(start..end, Rule::OUTERMOST);
        });
    }

    /// Reports where `code` is in the file: the offset by which it is looked up first, and its own.
    fn places(&mut self, segment: &CodeSegment<'_>, code: &[u8], mut each: impl FnMut(u64, u64)) {
        for at in memmem::find_iter(segment.bytes, code).take(self.left) {
            self.left -= 1;
            let before = segment.bytes.get(..at).unwrap_or_default();
            let landing_pad = if before.ends_with(LANDING_PAD) { LANDING_PAD.len() as u64 } else { 0 };
            let at = segment.file_offset.saturating_add(at as u64);
            each(at.saturating_sub(landing_pad + 1), at);
        }
    }
}
