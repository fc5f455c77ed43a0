//! Leaks exactly 30,000 bytes by each method of Rust's allocator interface, each in a function of its own.
//!
//! Commands: "go" runs the plan and leaks; "clean" runs the same plan and frees everything. The hand-shake
//! is that of `targets/handshake.h`.

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, realloc};
use std::hint::black_box;
use std::io::{Read as _, Write as _};

const BLOCKS: usize = 3;
const BLOCK_BYTES: usize = 10_000;

/// The end of every block of the plan.
#[inline(never)]
fn dispose(block: *mut u8, layout: Layout, frees: bool) {
    assert!(!block.is_null());
    if frees {
        // SAFETY: each block comes from the global allocator, with this layout, and is disposed of once.
        unsafe { dealloc(black_box(block), layout) };
    }
}

fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).expect("a layout")
}

#[inline(never)]
fn leak_alloc(frees: bool) {
    for _ in 0..BLOCKS {
        let layout = layout(BLOCK_BYTES, 8);
        // SAFETY: the size is not zero.
        dispose(black_box(unsafe { alloc(layout) }), layout, frees);
    }
}

#[inline(never)]
fn leak_aligned(frees: bool) {
    for _ in 0..BLOCKS {
        let layout = layout(BLOCK_BYTES, 256);
        // SAFETY: the size is not zero.
        dispose(black_box(unsafe { alloc(layout) }), layout, frees);
    }
}

#[inline(never)]
fn leak_zeroed(frees: bool) {
    for _ in 0..BLOCKS {
        let layout = layout(BLOCK_BYTES, 8);
        // SAFETY: the size is not zero.
        dispose(black_box(unsafe { alloc_zeroed(layout) }), layout, frees);
    }
}

#[inline(never)]
fn leak_zeroed_aligned(frees: bool) {
    for _ in 0..BLOCKS {
        let layout = layout(BLOCK_BYTES, 256);
        // SAFETY: the size is not zero.
        dispose(black_box(unsafe { alloc_zeroed(layout) }), layout, frees);
    }
}

/// Each block starts with 1,000 bytes and is grown.
fn grown(align: usize, frees: bool) {
    for _ in 0..BLOCKS {
        let small = layout(1000, align);
        // SAFETY: the sizes are not zero, and the block has the layout `small`.
        let block = unsafe { realloc(black_box(alloc(small)), small, BLOCK_BYTES) };
        dispose(black_box(block), layout(BLOCK_BYTES, align), frees);
    }
}

#[inline(never)]
fn leak_realloc(frees: bool) {
    grown(8, frees);
    black_box(frees);
}

#[inline(never)]
fn leak_realloc_aligned(frees: bool) {
    grown(256, frees);
    black_box(frees);
}

/// A vector whose elements are the only block.
#[inline(never)]
fn leak_vec(frees: bool) {
    let vector: Vec<u8> = black_box(Vec::with_capacity(BLOCKS * BLOCK_BYTES));
    if frees {
        drop(vector);
    } else {
        std::mem::forget(vector);
    }
}

#[inline(never)]
fn run_plan(frees: bool) {
    leak_alloc(frees);
    leak_aligned(frees);
    leak_zeroed(frees);
    leak_zeroed_aligned(frees);
    leak_realloc(frees);
    leak_realloc_aligned(frees);
    leak_vec(frees);
    // Keeps the last call from being a tail call.
    black_box(frees);
}

/// One line without its end, in memory that is not allocated.
fn next_command(line: &mut [u8; 64]) -> &[u8] {
    let mut len = 0;
    loop {
        let mut byte = [0];
        // A test that is gone ends the target.
        if std::io::stdin().lock().read(&mut byte).unwrap_or(0) != 1 || len == line.len() {
            std::process::exit(111);
        }
        if byte[0] == b'\n' {
            return &line[..len];
        }
        line[len] = byte[0];
        len += 1;
    }
}

fn answer(line: &str) {
    let mut output = std::io::stdout().lock();
    if output.write_all(line.as_bytes()).and_then(|()| output.flush()).is_err() {
        std::process::exit(111);
    }
}

/// Answers commands until told to quit.
pub fn serve() {
    let mut line = [0; 64];
    answer("ready\n");
    loop {
        match next_command(&mut line) {
            b"quit" => return,
            command => run_plan(command == b"clean"),
        }
        answer("done\n");
    }
}
