//! Rules of return addresses alone.

use std::collections::HashMap;

use tracer_common::native::{Base, CallSite};

use super::super::{UnwindError, call_sites};
use super::{built, symbols, without_section_headers};

/// The rows at the symbols of a file.
fn rows_by_symbol(elf: &[u8]) -> HashMap<String, CallSite> {
    let rows: HashMap<u64, CallSite> =
        call_sites(elf).unwrap().iter().map(|row| (row.file_offset, row.row)).collect();
    symbols(elf).into_iter().filter_map(|(name, at)| Some((name, *rows.get(&at)?))).collect()
}

/// Labels `r…` mark the return addresses.
const ASSEMBLY: &str = "
    .text
plain:
    .cfi_startproc
    call    *%rax
r_entry:
    push    %rbp
    .cfi_def_cfa_offset 16
    .cfi_offset %rbp, -16
    call    outside
r_pushed:
    sub     $64, %rsp
    .cfi_adjust_cfa_offset 64
    call    *8(%rax)
r_local:
    .cfi_remember_state
    add     $64, %rsp
    .cfi_adjust_cfa_offset -64
    pop     %rbp
    .cfi_def_cfa_offset 8
    .cfi_restore %rbp
    call    outside
r_restored:
    ret
    .cfi_restore_state
    call    outside
r_cold:
    .cfi_endproc

framed:
    .cfi_startproc
    push    %rbp
    .cfi_def_cfa_offset 16
    .cfi_offset %rbp, -16
    mov     %rsp, %rbp
    .cfi_def_cfa_register %rbp
    call    outside
r_framed:
    .cfi_same_value %rbp
    call    outside
r_same:
    .cfi_offset %rbp, -40000
    call    outside
r_far:
    .cfi_offset %rbp, 0
    call    outside
r_at_cfa:
    .cfi_escape 0x10, 0x06, 0x02, 0x76, 0x00
    call    outside
r_rbp_expression:
    ret
    .cfi_endproc

outermost:
    .cfi_startproc
    .cfi_undefined %rip
    call    outside
r_outermost:
    hlt
    .cfi_endproc

odd:
    .cfi_startproc
    .cfi_def_cfa %rbx, 8
    call    outside
r_other_register:
    .cfi_def_cfa %rsp, 8
    .cfi_offset %rip, -16
    call    outside
r_return_address_elsewhere:
    .cfi_offset %rip, -8
    .cfi_escape 0x0f, 0x03, 0x76, 0x78, 0x06
    call    outside
r_cfa_expression:
    .cfi_def_cfa %rsp, 8
    call    outside
    .cfi_endproc

r_at_the_end:
handler_returns_here:
    .cfi_startproc
    .cfi_signal_frame
    mov     $15, %eax
    syscall
    .cfi_endproc

r_none_1:
    sub     $8, %rsp
    call    outside
r_none_2:
    add     $8, %rsp
    ret
without_table:
    push    %rbp
    mov     %rsp, %rbp
    sub     $32, %rsp
    call    outside
r_frame_pointer:
    test    %eax, %eax
    jne     1f
    leave
    ret
1:  call    outside
r_frame_pointer_2:
    leave
    ret
    sub     $8, %rsp
    call    outside
r_none_3:
    add     $8, %rsp
    ret
outside:
    ret
";

fn expected() -> HashMap<String, CallSite> {
    [
        ("r_entry", CallSite::new(Base::Rsp, 8, 0)),
        ("r_pushed", CallSite::new(Base::Rsp, 16, -16)),
        ("r_local", CallSite::new(Base::Rsp, 80, -16)),
        ("r_restored", CallSite::new(Base::Rsp, 8, 0)),
        ("r_cold", CallSite::new(Base::Rsp, 80, -16)),
        // The function behind starts at the same address.
        ("framed", CallSite::new(Base::Rsp, 80, -16)),
        ("r_framed", CallSite::FRAME_POINTER),
        ("r_same", CallSite::new(Base::Rbp, 16, 0)),
        ("r_far", CallSite::UNSUPPORTED),
        ("r_at_cfa", CallSite::UNSUPPORTED),
        ("r_rbp_expression", CallSite::UNSUPPORTED),
        ("r_outermost", CallSite::OUTERMOST),
        ("r_other_register", CallSite::UNSUPPORTED),
        ("r_return_address_elsewhere", CallSite::UNSUPPORTED),
        ("r_cfa_expression", CallSite::UNSUPPORTED),
        ("r_at_the_end", CallSite::new(Base::Rsp, 8, 0)),
        // Behind a call and start of a trampoline at once: the call's rule is the one in force.
        ("handler_returns_here", CallSite::new(Base::Rsp, 8, 0)),
        ("r_frame_pointer", CallSite::FRAME_POINTER),
        ("r_frame_pointer_2", CallSite::FRAME_POINTER),
    ]
    .into_iter()
    .map(|(name, row)| (name.to_owned(), row))
    .collect()
}

fn assembled(sections: &str) -> Vec<u8> {
    built("rows.S", &format!("{sections}\n{ASSEMBLY}"), &["-shared", "-nostdlib"])
}

#[test]
fn every_call_has_the_rule_in_force_at_the_call() {
    let elf = assembled("");
    assert_eq!(rows_by_symbol(&elf), expected());
    let rows = call_sites(&elf).unwrap();
    assert!(rows.is_sorted_by(|a, b| a.file_offset < b.file_offset));
}

#[test]
fn debug_frame_stands_in_for_eh_frame() {
    assert_eq!(rows_by_symbol(&assembled(".cfi_sections .debug_frame")), expected());
}

#[test]
fn section_headers_are_not_needed() {
    let elf = assembled("");
    let rows = call_sites(&elf).unwrap();
    assert_eq!(call_sites(&without_section_headers(elf)).unwrap(), rows);
}

#[test]
fn what_the_entry_point_calls_has_it_as_the_outermost_frame() {
    let source = "
    .globl _start
_start:
    mov     %rsp, %rdi
    call    first
r_first:
    xor     %ebp, %ebp
    call    *%rax
r_second:
    jmp     *%r12
first:
    call    *%rax
r_behind:
    ret
";
    let rows = rows_by_symbol(&built("entry.s", source, &["-nostdlib", "-static"]));
    let expected = ["r_first", "r_second"].map(|label| (label.to_owned(), CallSite::OUTERMOST));
    assert_eq!(rows, HashMap::from(expected));
}

#[test]
fn a_signal_trampoline_ends_the_walk_with_a_reason() {
    // As in glibc: the range starts one byte before the trampoline.
    let source = "
        .text
        .cfi_startproc
        .cfi_signal_frame
        nop
    restorer:
        mov     $15, %eax
        syscall
        .cfi_endproc";
    let rows = rows_by_symbol(&built("signal.S", source, &["-shared", "-nostdlib"]));
    assert_eq!(rows.get("restorer"), Some(&CallSite::UNSUPPORTED));
}

#[test]
fn compiled_code_with_frame_pointers_has_frame_pointer_rows() {
    let source = "
        int outside(int *); int with_alloca(int n)
        { int *p = __builtin_alloca(n); return outside(p) + p[0]; }
        int plain(int n) { int v[4] = {n}; return outside(v) + v[1]; }";
    let shared = ["-shared", "-fPIC", "-O2", "-nostdlib"];
    let bases = |flag: &str| {
        let elf = built("frames.c", source, &[shared.as_slice(), &[flag]].concat());
        let rows = call_sites(&elf).unwrap();
        rows.iter().map(|row| row.row.base()).collect::<Vec<_>>()
    };
    assert_eq!(bases("-fno-omit-frame-pointer"), [Base::Rbp, Base::Rbp]);
    assert_eq!(bases("-fomit-frame-pointer"), [Base::Rbp, Base::Rsp]);
}

#[test]
fn what_is_no_x86_64_program_is_refused() {
    assert!(matches!(call_sites(b"#!/bin/sh\n"), Err(UnwindError::NotElf(_))));
    let mut elf = assembled("");
    elf[0x12] = 183; // e_machine: AArch64
    assert!(matches!(call_sites(&elf), Err(UnwindError::WrongMachine { machine: 183 })));
    let object_file = built("rows.S", ASSEMBLY, &["-c"]);
    assert!(matches!(call_sites(&object_file), Err(UnwindError::NoCode)));
}
