//! Reading the memory of the current process.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::helpers::{bpf_probe_read_user, generated};
use tracer_common::memory::ReadMemory;

/// Words that are read at a time: a read of 256 words costs a third more than one of a single word, and frames lie
/// close together.
const WINDOW_WORDS: usize = 256;
const WINDOW_BYTES: u64 = WINDOW_WORDS as u64 * 8;

/// A part of the stack as it was when it was read.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Window {
    /// Address of the first word.
    pub start_addr: u64,
    /// The words.
    pub words: [u64; WINDOW_WORDS],
}

/// The memory of the current process, read as it is asked for.
#[derive(Clone, Copy)]
pub struct DirectMemory;

impl ReadMemory for DirectMemory {
    #[inline(always)]
    fn read_word(&self, addr: u64) -> Option<u64> {
        // SAFETY: a user read may fail; it touches no memory of ours.
        unsafe { bpf_probe_read_user(addr as *const u64) }.ok()
    }

    #[inline(always)]
    fn read_word_or_zero(&self, addr: u64) -> u64 {
        let mut word = 0;
        // SAFETY: a user read may fail; it writes the 8 bytes of `word`, zeroes where it fails.
        unsafe { generated::bpf_probe_read_user((&raw mut word).cast(), 8, addr as *const _) };
        word
    }

    #[inline(always)]
    fn read_words<const N: usize>(&self, addr: u64, count: u32, to: &mut [u64; N]) -> bool {
        const { assert!(N.is_power_of_two()) };
        // A bound that the verifier sees. Nobody asks for all the words that there is room for.
        // SAFETY: a local. Read anew, so that the compiler keeps the mask even where it knows a bound itself.
        let bytes = (unsafe { read_volatile(&raw const count) } & (N as u32 - 1)) * 8;
        // SAFETY: a user read may fail; it writes fewer words than there are.
        unsafe {
            bytes != 0 && generated::bpf_probe_read_user((&raw mut *to).cast(), bytes, addr as *const _) == 0
        }
    }
}

/// No window begins there: user addresses are lower, and so are those behind it by less than its size.
const NOWHERE: u64 = 1 << 63;

/// The memory of the current process, through a window on the stack.
#[derive(Clone, Copy)]
pub struct UserMemory {
    window: *mut Window,
}

impl UserMemory {
    /// Reads through `window`, which lives as long as this.
    #[inline(always)]
    pub fn new(window: *mut Window) -> Self {
        Self { window }
    }

    /// Forgets what was read.
    #[inline(always)]
    pub fn forget(&self) {
        // SAFETY: the window belongs to this thread and is written here alone.
        unsafe { write_volatile(&raw mut (*self.window).start_addr, NOWHERE) };
    }
}

impl ReadMemory for UserMemory {
    #[inline(always)]
    fn read_word(&self, addr: u64) -> Option<u64> {
        // SAFETY: a user read may fail; it touches no memory of ours.
        let alone = || unsafe { bpf_probe_read_user(addr as *const u64) }.ok();
        // Only aligned words are read through the window, so that it begins at one.
        if addr & 7 != 0 {
            return alone();
        }
        // SAFETY: the window belongs to this thread; the index is held below its length.
        unsafe {
            let inside = addr.wrapping_sub(read_volatile(&raw const (*self.window).start_addr));
            if inside < WINDOW_BYTES {
                return Some((*self.window).words[(inside >> 3) as usize]);
            }
            let words = (&raw mut (*self.window).words).cast();
            if generated::bpf_probe_read_user(words, WINDOW_BYTES as u32, addr as *const _) == 0 {
                write_volatile(&raw mut (*self.window).start_addr, addr);
                return Some(read_volatile((&raw const (*self.window).words).cast()));
            }
        }
        self.forget();
        // The end of what is mapped may be near.
        alone()
    }
}
