//! Tests over the bytes of real functions, and over sequences made up for one rule each.

use super::*;

fn at(code: &[u8], arguments: u8) -> Placement {
    place(code, 0x40_1000, 0..arguments, KernelNops::SingleByte)
}

fn found(offset: u32, instruction: Emulated) -> Placement {
    let why = match offset {
        0 => Reason::EntryEmulated(instruction),
        _ => Reason::Emulated(instruction),
    };
    Placement { offset, why }
}

fn fallback(obstacle: Obstacle) -> Placement {
    Placement { offset: 0, why: Reason::FallbackEntry(obstacle) }
}

// First bytes of functions in Debian 12's glibc 2.36-9+deb12u14, libc.so.6.

#[rustfmt::skip]
const GLIBC_MALLOC: &[u8] = &[
    0x41, 0x54,                         // push r12
    0x55,                               // push rbp
    0x53,                               // push rbx
    0x48, 0x89, 0xfb,                   // mov rbx, rdi
    0x48, 0x83, 0xec, 0x10,             // sub rsp, 16
];
#[rustfmt::skip]
const GLIBC_FREE: &[u8] = &[
    0x48, 0x85, 0xff,                   // test rdi, rdi
    0x0f, 0x84, 0xbf, 0x00, 0x00, 0x00, // je +200
    0x55,                               // push rbp
    0x48, 0x8d, 0x77, 0xf0,             // lea rsi, [rdi-16]
    0x53,                               // push rbx
    0x48, 0x83, 0xec, 0x18,             // sub rsp, 24
];
/// The whole function.
#[rustfmt::skip]
const GLIBC_REALLOCARRAY: &[u8] = &[
    0x48, 0x89, 0xf0,                   // mov rax, rsi
    0x48, 0xf7, 0xe2,                   // mul rdx
    0x48, 0x89, 0xc6,                   // mov rsi, rax
    0x70, 0x05,                         // jo +16
    0xe9, 0x40, 0xb8, 0xf8, 0xff,       // jmp realloc@plt
    0x48, 0x8b, 0x05, 0xe9, 0x85, 0x13, 0x00, // mov rax, [rip+…]
    0x64, 0xc7, 0x00, 0x0c, 0x00, 0x00, 0x00, // mov dword fs:[rax], 12
    0x31, 0xc0,                         // xor eax, eax
    0xc3,                               // ret
];
#[rustfmt::skip]
const GLIBC_PVALLOC: &[u8] = &[
    0x80, 0x3d, 0x01, 0x0e, 0x14, 0x00, 0x00, // cmp byte [rip+…], 0
    0x53,                               // push rbx
    0x48, 0x89, 0xfb,                   // mov rbx, rdi
    0x74, 0x2b,                         // je +56
];
#[rustfmt::skip]
const GLIBC_MREMAP: &[u8] = &[
    0x48, 0x83, 0xec, 0x58,             // sub rsp, 88
    0x4c, 0x89, 0x44, 0x24, 0x40,       // mov [rsp+64], r8
];

// CPython 3.11.7 as pyenv builds it (gcc 12, no LTO), libpython3.11.so.1.0; the whole functions.

#[rustfmt::skip]
const PYOBJECT_MALLOC: &[u8] = &[
    0x48, 0x89, 0xfe,                   // mov rsi, rdi
    0x48, 0x85, 0xff,                   // test rdi, rdi
    0x78, 0x10,                         // js +24
    0x48, 0x8b, 0x3d, 0x71, 0xd0, 0x2a, 0x00, // mov rdi, [rip+…]
    0xff, 0x25, 0x73, 0xd0, 0x2a, 0x00, // jmp [rip+…]
    0x0f, 0x1f, 0x00,                   // nop
    0x31, 0xc0,                         // xor eax, eax
    0xc3,                               // ret
];
#[rustfmt::skip]
const PYOBJECT_FREE: &[u8] = &[
    0x48, 0x89, 0xfe,                   // mov rsi, rdi
    0x48, 0x8b, 0x3d, 0xe6, 0xcf, 0x2a, 0x00, // mov rdi, [rip+…]
    0xff, 0x25, 0x00, 0xd0, 0x2a, 0x00, // jmp [rip+…]
];

#[test]
fn functions_of_the_c_library() {
    assert_eq!(at(GLIBC_MALLOC, 1), found(0, Emulated::Push));
    assert_eq!(at(GLIBC_FREE, 1), found(3, Emulated::ConditionalJump));
    assert_eq!(at(GLIBC_PVALLOC, 1), found(7, Emulated::Push));
    let moved = Obstacle::StackPointerMoved { offset: 0 };
    assert_eq!(at(GLIBC_MREMAP, 5), fallback(moved));
}

#[test]
fn arguments_that_are_read_must_be_intact() {
    let overwritten = Obstacle::ArgumentOverwritten { argument: 2, offset: 3 };
    assert_eq!(at(GLIBC_REALLOCARRAY, 3), fallback(overwritten));
    let overwritten = Obstacle::ArgumentOverwritten { argument: 1, offset: 6 };
    assert_eq!(at(GLIBC_REALLOCARRAY, 2), fallback(overwritten));
    assert_eq!(at(GLIBC_REALLOCARRAY, 1), found(9, Emulated::ConditionalJump));
}

#[test]
fn functions_of_cpython() {
    assert_eq!(at(PYOBJECT_MALLOC, 1), found(6, Emulated::ConditionalJump));
    let overwritten = Obstacle::ArgumentOverwritten { argument: 0, offset: 3 };
    assert_eq!(at(PYOBJECT_FREE, 1), fallback(overwritten));
    // Its jump through memory is a tail call, executed out of line.
    assert_eq!(at(PYOBJECT_FREE, 0), fallback(Obstacle::StraightLineEnds { offset: 10 }));
}

#[test]
fn an_argument_that_is_not_read_may_be_overwritten() {
    // xor edi, edi; test rsi, rsi; je
    let code = [0x31, 0xff, 0x48, 0x85, 0xf6, 0x74, 0x10];
    let of = |arguments| place(&code, 0, arguments, KernelNops::SingleByte);
    assert_eq!(of(1..2), found(5, Emulated::ConditionalJump));
    assert_eq!(of(0..2), fallback(Obstacle::ArgumentOverwritten { argument: 0, offset: 0 }));
}

#[test]
fn endbr64_is_passed_over() {
    let code = [0xf3, 0x0f, 0x1e, 0xfa, 0x55]; // endbr64; push rbp
    assert_eq!(at(&code, 6), found(4, Emulated::Push));
}

#[test]
fn parts_of_an_argument_register_count() {
    let push = 0x55;
    let overwritten = |argument| fallback(Obstacle::ArgumentOverwritten { argument, offset: 0 });
    assert_eq!(at(&[0x40, 0xb7, 0x01, push], 1), overwritten(0)); // mov dil, 1
    assert_eq!(at(&[0xb9, 1, 0, 0, 0, push], 4), overwritten(3)); // mov ecx, 1
    assert_eq!(at(&[0xb9, 1, 0, 0, 0, push], 3), found(5, Emulated::Push));
    assert_eq!(at(&[0x4c, 0x0f, 0x44, 0xc0, push], 5), overwritten(4)); // cmove r8, rax
    assert_eq!(at(&[0x49, 0x87, 0xc1, push], 6), overwritten(5)); // xchg r9, rax
}

#[test]
fn a_site_that_branches_lead_around_to_is_not_taken() {
    // test rdi, rdi; dec rax; jne back; ret
    let back_to = |target: u8| [0x48, 0x85, 0xff, 0x48, 0xff, 0xc8, 0x75, target.wrapping_sub(8), 0xc3];
    assert_eq!(at(&back_to(3), 1), fallback(Obstacle::BranchInto { offset: 3 }));
    assert_eq!(at(&back_to(6), 1), fallback(Obstacle::BranchInto { offset: 6 }));
    assert_eq!(at(&back_to(8), 1), found(6, Emulated::ConditionalJump));
    // To the entry: the function calls itself anew, with the probe.
    assert_eq!(at(&back_to(0), 1), found(6, Emulated::ConditionalJump));
    // A branch from far behind counts as well: test rdi, rdi; je; ret; jmp +3.
    let far = [0x48, 0x85, 0xff, 0x74, 0x01, 0xc3, 0xe9, 0xf8, 0xff, 0xff, 0xff];
    assert_eq!(at(&far, 1), fallback(Obstacle::BranchInto { offset: 3 }));
}

#[test]
fn a_jump_table_may_lead_anywhere() {
    let test_ja = [0x48, 0x85, 0xff, 0x77, 0x10]; // test rdi, rdi; ja
    let with = |rest: &[u8]| at(&[&test_ja, rest].concat(), 1);
    let table = fallback(Obstacle::JumpTable { offset: 8 });
    assert_eq!(with(&[0x48, 0x01, 0xd0, 0xff, 0xe0]), table); // add rax, rdx; jmp rax
    let table = fallback(Obstacle::JumpTable { offset: 5 });
    assert_eq!(with(&[0xff, 0x24, 0xc5, 0, 0x20, 0x40, 0]), table); // jmp [rax*8 + 0x402000]
    let taken = found(3, Emulated::ConditionalJump);
    assert_eq!(with(&[0x48, 0x8b, 0x00, 0xff, 0xe0]), taken); // mov rax, [rax]; jmp rax
}

#[test]
fn nops_count_as_far_as_the_kernel_emulates_them() {
    let both =
        |code: &[u8]| [KernelNops::SingleByte, KernelNops::MultiByte].map(|nops| place(code, 0, 0..1, nops));
    let (nop, push) = (found(0, Emulated::Nop), |offset| found(offset, Emulated::Push));
    assert_eq!(both(&[0x90, 0x55]), [nop, nop]);
    assert_eq!(both(&[0x66, 0x90, 0x55]), [push(2), nop]);
    assert_eq!(both(&[0x0f, 0x1f, 0x44, 0, 0, 0x55]), [push(5), nop]);
    // With a cs prefix the kernel takes no probe at all.
    let long = [0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0, 0x55];
    assert_eq!(both(&long), [push(10), push(10)]);
    // mov [rsp-8], rdi; nop; push: a call in place of the nop would overwrite what was stored.
    let stored = [0x48, 0x89, 0x7c, 0x24, 0xf8, 0x0f, 0x1f, 0x44, 0, 0, 0x55];
    assert_eq!(both(&stored), [push(10), push(10)]);
}

#[test]
fn every_emulated_form_is_known_and_no_refused_one() {
    let jump_forms: [(&[u8], Emulated); 6] = [
        (&[0xeb, 0x10], Emulated::Jump),
        (&[0xe9, 0, 1, 0, 0], Emulated::Jump),
        (&[0xf2, 0xe9, 0, 1, 0, 0], Emulated::Jump),
        (&[0xe8, 0, 1, 0, 0], Emulated::Call),
        (&[0x7f, 0x10], Emulated::ConditionalJump),
        (&[0x0f, 0x8f, 0, 1, 0, 0], Emulated::ConditionalJump),
    ];
    for (code, kind) in jump_forms {
        assert_eq!(at(code, 6), found(0, kind), "{code:02x?}");
    }
    let ends_at_3 = fallback(Obstacle::StraightLineEnds { offset: 3 });
    let others: [&[u8]; 7] = [
        &[0x66, 0xe9, 0, 1, 0, 0], // jmp with an operand size prefix
        &[0x3e, 0x74, 0x10],       // je with a ds prefix
        &[0xe3, 0x10],             // jrcxz
        &[0xff, 0xd0],             // call rax
        &[0x0f, 0x05],             // syscall
        &[0xcc],                   // int3
        &[0xc3],                   // ret
    ];
    for code in others {
        assert_eq!(at(&[&[0x48, 0x85, 0xff], code].concat(), 6), ends_at_3, "{code:02x?}");
    }
    // push [rax] and a push with REX.W are executed out of line and move the stack pointer.
    let moved = fallback(Obstacle::StackPointerMoved { offset: 0 });
    assert_eq!(at(&[0xff, 0x30, 0x55], 6), moved);
    assert_eq!(at(&[0x48, 0x55, 0x55], 6), moved);
}

#[test]
fn code_that_ends_falls_back_to_the_entry() {
    assert_eq!(at(&[], 1), fallback(Obstacle::CodeEnds { offset: 0 }));
    assert_eq!(at(&GLIBC_FREE[..3], 1), fallback(Obstacle::CodeEnds { offset: 3 }));
    for cut in 3..9 {
        assert_eq!(at(&GLIBC_FREE[..cut], 1), fallback(Obstacle::CodeEnds { offset: 3 }));
    }
    assert_eq!(at(&[0x06], 1), fallback(Obstacle::CodeEnds { offset: 0 }));
}

#[test]
fn doctor_can_say_why() {
    assert_eq!(at(GLIBC_MALLOC, 1).to_string(), "+0 (at entry, emulated push)");
    assert_eq!(at(GLIBC_FREE, 1).to_string(), "+3 (emulated conditional jump)");
    assert_eq!(
        at(GLIBC_MREMAP, 5).to_string(),
        "+0 (at entry, single-stepped: the stack pointer moves at +0)"
    );
}
