//! Tables of programs built for the purpose.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::process::Command;

use tracer_common::unwind_table::{Base, PAGE_BYTES, PAGE_SHIFT, Rule, wide_word};

use super::super::functions::Source;
use super::super::{Table, UnwindError, compile};
use super::assembly::{ASSEMBLY, assembled, expected};
use super::{Lookup, build, built, rule, symbols, without_section_headers};

/// The rules in force at the calls before the labels `r_…` of a file.
fn rules_by_label(elf: &[u8]) -> HashMap<String, Rule> {
    let table = compile(elf, None).unwrap();
    let lookup = Lookup::new(elf, &table);
    let labels = symbols(elf).into_iter().filter(|(name, _)| name.starts_with("r_"));
    labels.map(|(name, offset)| (name, lookup.at_offset(offset - 1))).collect()
}

fn assert_as_expected(elf: &[u8], source: Source) {
    let (mut found, mut expected) = (rules_by_label(elf), expected());
    if source == Source::DebugFrame {
        // gimli (0.33) loses count in an entry that says only that it is a signal handler's end, as the
        // assembler writes it there.
        for label in ["r_switched", "r_handler"] {
            expected.remove(label);
            assert_eq!(found.remove(label).unwrap().base(), Base::Special);
        }
    }
    assert_eq!(found, expected);
    let table = compile(elf, None).unwrap();
    let wide = &table.words[table.geometry.wide_at as usize..];
    assert_eq!(wide, [wide_word(16, -40_000), wide_word(12, 0), wide_word(300_000, 0)]);
    assert_sound(&table);
}

/// What every table is, whatever its file.
pub(super) fn assert_sound(table: &Table) {
    let Table { geometry, words } = table;
    assert!(geometry.rows_at < geometry.wide_at && geometry.wide_at <= geometry.words);
    assert_eq!(geometry.words as usize, words.len());
    let rows = &words[geometry.rows_at as usize..geometry.wide_at as usize];
    assert_eq!(rows[0] as u32, 0);
    assert!(rows.is_sorted_by(|a, b| (*a as u32) < *b as u32 && a >> 32 != b >> 32));
    for (page, word) in (geometry.first_page..).zip(&words[..geometry.rows_at as usize]) {
        let last_until = |offset: u64| rows.partition_point(|row| u64::from(*row as u32) < offset) - 1;
        let start = u64::from(page) << PAGE_SHIFT;
        let bounds = (last_until(start + 1), last_until(start + u64::from(PAGE_BYTES)));
        assert_eq!((*word as u32 as usize, (word >> 32) as usize), bounds, "page {page}");
    }
}

#[test]
fn every_call_has_its_rule() {
    assert_as_expected(&assembled(""), Source::EhFrame);
}

#[test]
fn debug_frame_stands_in_for_eh_frame() {
    assert_as_expected(&assembled(".cfi_sections .debug_frame"), Source::DebugFrame);
}

#[test]
fn compressed_sections_are_read() {
    let assembly = format!(".cfi_sections .debug_frame\n{ASSEMBLY}");
    for way in ["zlib-gabi", "zlib-gnu"] {
        let flag = format!("-Wl,--compress-debug-sections={way}");
        let elf = built("rows.S", &assembly, &["-shared", "-nostdlib", &flag]);
        let file = object::read::elf::ElfFile64::<object::LittleEndian>::parse(elf.as_slice()).unwrap();
        assert!(way != "zlib-gnu" || object::Object::section_by_name(&file, ".zdebug_frame").is_some());
        assert_as_expected(&elf, Source::DebugFrame);
    }
}

#[test]
fn a_debug_file_stands_in_too() {
    let (dir, path) = build(
        "rows.S",
        &format!(".cfi_sections .debug_frame\n{ASSEMBLY}"),
        &["-shared", "-nostdlib", "-Wl,-s"],
    );
    let whole = assembled(".cfi_sections .debug_frame");
    let split_off = dir.path().join("split.debug");
    let whole_path = dir.path().join("whole");
    fs::write(&whole_path, &whole).unwrap();
    let status = Command::new("objcopy").arg("--only-keep-debug").args([&whole_path, &split_off]).status();
    assert!(status.unwrap().success());
    let stripped = fs::read(path).unwrap();
    assert_ne!(compile(&stripped, None).unwrap(), compile(&whole, None).unwrap());
    let by_debug_file = compile(&stripped, Some(&fs::read(split_off).unwrap())).unwrap();
    assert_eq!(by_debug_file, compile(&whole, None).unwrap());
}

#[test]
fn debug_frame_fills_what_eh_frame_leaves_out() {
    let source = "
        .cfi_sections .eh_frame
    one:
        .cfi_startproc
        push    %rax
        .cfi_def_cfa_offset 16
        call    *%rax
    r_one:
        nop
        .cfi_endproc
    ";
    let other = "
        .cfi_sections .debug_frame
    two:
        .cfi_startproc
        .cfi_def_cfa_offset 64
        call    *%rax
    r_two:
        nop
        .cfi_endproc
    ";
    let (dir, _) = build("one.s", source, &["-c"]);
    let first = dir.path().join("built");
    let first = first.to_str().unwrap();
    let elf = built("two.s", other, &["-shared", "-nostdlib", first]);
    let expected = [("r_one", 16), ("r_two", 64)];
    let expected = expected.map(|(name, cfa)| (name.to_owned(), rule(Base::Rsp, cfa, 0)));
    assert_eq!(rules_by_label(&elf), HashMap::from(expected));
}

#[test]
fn an_entry_that_cannot_be_read_hides_no_other() {
    let source = "
    one:
        .cfi_startproc
        .cfi_def_cfa_offset 16
        call    *%rax
    r_one:
        .cfi_endproc
        .section .eh_frame, \"a\"
        .long   20, 0
        .byte   1
        .asciz  \"odd\"
        .fill   11, 1, 0
        .long   0
        .text
    ";
    let (dir, _) = build("one.s", source, &["-c"]);
    let first = dir.path().join("built");
    let elf = built("rows.S", ASSEMBLY, &["-shared", "-nostdlib", first.to_str().unwrap()]);
    let whole = rules_by_label(&elf);
    assert_eq!(whole.get("r_one"), Some(&rule(Base::Rsp, 16, 0)));
    assert_eq!(whole.len(), expected().len() + 1);
    for (label, rule) in expected() {
        assert_eq!(whole.get(&label), Some(&rule), "{label}");
    }
}

#[test]
fn section_headers_are_not_needed() {
    let elf = assembled("");
    let table = compile(&elf, None).unwrap();
    assert_eq!(compile(&without_section_headers(elf), None).unwrap(), table);
}

#[test]
fn between_functions_nothing_is_known() {
    let source = "
    one:
        .cfi_startproc
        call    *%rax
        .cfi_endproc
    r_end:
        .p2align 9
    two:
        .cfi_startproc
        ret
        .cfi_endproc
    ";
    let elf = built("gap.s", source, &["-shared", "-nostdlib"]);
    let table = compile(&elf, None).unwrap();
    let lookup = Lookup::new(&elf, &table);
    let offsets: HashMap<String, u64> = symbols(&elf).into_iter().collect();
    for (label, rules) in [
        ("one", [Rule::NONE, rule(Base::Rsp, 8, 0)]),
        ("r_end", [rule(Base::Rsp, 8, 0), Rule::NONE]),
        ("two", [Rule::NONE, rule(Base::Rsp, 8, 0)]),
    ] {
        let at = offsets[label];
        assert_eq!([at - 1, at].map(|offset| lookup.at_offset(offset)), rules, "{label}");
    }
    assert_eq!(lookup.at_offset(offsets["two"] + 1), Rule::NONE);
    for offset in [0, 1 << 20, u64::from(u32::MAX), 1 << 33] {
        assert_eq!(lookup.at_offset(offset), Rule::NONE);
    }
}

#[test]
fn other_plts_push_at_another_byte() {
    // As GNU ld writes it for lazy binding with landing pads: the word is pushed at byte 10.
    let source = "
        .p2align 4
        .globl slots
    slots:
        .cfi_startproc
        .cfi_escape 0x0f, 0x0b, 0x77, 0x08, 0x80, 0x00, 0x3f, 0x1a, 0x3a, 0x2a, 0x33, 0x24, 0x22
        .fill   40, 1, 0x90
        .cfi_endproc
        .cfi_startproc
        .cfi_escape 0x0f, 0x0b, 0x77, 0x08, 0x80, 0x00, 0x3f, 0x1a, 0x3b, 0x2a, 0x33, 0x24, 0x22
        .fill   40, 1, 0x90
        .cfi_endproc
    ";
    let elf = built("plt.s", source, &["-shared", "-nostdlib"]);
    let table = compile(&elf, None).unwrap();
    let lookup = Lookup::new(&elf, &table);
    let slots = symbols(&elf).into_iter().find(|symbol| symbol.0 == "slots").unwrap().1;
    assert_eq!(slots % 16, 0);
    for at in 0..40 {
        let pushed = if at % 16 >= 10 { 16 } else { 8 };
        assert_eq!(lookup.at_offset(slots + at), rule(Base::Rsp, pushed, 0), "byte {at}");
    }
    assert_eq!([40, 79].map(|at| lookup.at_offset(slots + at)), [Rule::PLT, Rule::PLT]);
}

#[test]
fn the_frame_address_is_found_where_the_callee_saves_it() {
    let source = "
    binder:
        .cfi_startproc
        push    %rbx
        .cfi_def_cfa_offset 16
        .cfi_offset %rbx, -16
        mov     %rsp, %rbx
        .cfi_def_cfa %rbx, 32
        and     $-64, %rsp
        call    saves
    r_saves:
        call    *%rax
    r_indirect:
        call    saves_late
    r_saves_late:
        call    saves_elsewhere
    r_saves_elsewhere:
        call    saves_nothing
    r_saves_nothing:
        call    undescribed
    r_undescribed:
        .cfi_offset %rbp, -24
        call    saves
    r_rbp:
        .cfi_def_cfa %r12, 8
        call    saves
    r_other_register:
        .cfi_def_cfa %rax, 8
        call    saves
    r_lost_register:
        hlt
        .cfi_endproc
    saves:
        .cfi_startproc
        push    %r12
        .cfi_def_cfa_offset 16
        .cfi_offset %r12, -16
        push    %rbx
        .cfi_def_cfa_offset 24
        .cfi_offset %rbx, -24
        call    *%rax
        pop     %rbx
        .cfi_def_cfa_offset 16
        pop     %r12
        .cfi_def_cfa_offset 8
        ret
        .cfi_endproc
    saves_late:
        .cfi_startproc
        call    *%rax
        push    %rbx
        .cfi_def_cfa_offset 16
        .cfi_offset %rbx, -16
        call    *%rax
        .cfi_endproc
    saves_elsewhere:
        .cfi_startproc
        push    %rbx
        .cfi_def_cfa_offset 16
        .cfi_offset %rbx, -16
        call    *%rax
        .cfi_offset %rbx, -8
        call    *%rax
        .cfi_endproc
    saves_nothing:
        .cfi_startproc
        call    *%rax
        .cfi_endproc
    undescribed:
        push    %rbx
        call    *%rax
    ";
    let mut rules = rules_by_label(&built("held.s", source, &["-shared", "-nostdlib"]));
    let by_slot = |slot, cfa, rbp| Some(Rule::by_slot(slot, cfa, rbp).unwrap());
    assert_eq!(rules.remove("r_saves"), by_slot(-24, 32, 0));
    assert_eq!(rules.remove("r_rbp"), by_slot(-24, 32, -24));
    assert_eq!(rules.remove("r_other_register"), by_slot(-16, 8, -24));
    assert_eq!(rules.len(), 6, "{rules:?}");
    assert!(rules.values().all(|rule| *rule == Rule::UNSUPPORTED), "{rules:?}");
}

#[test]
fn what_the_entry_point_calls_has_it_as_the_outermost_frame() {
    let source = "
        nop
        call    *%rax
    r_before:
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
    let rules = rules_by_label(&built("entry.s", source, &["-nostdlib", "-static"]));
    let expected = [
        ("r_before", Rule::NONE),
        ("r_first", Rule::OUTERMOST),
        ("r_second", Rule::OUTERMOST),
        ("r_behind", Rule::NONE),
    ];
    assert_eq!(rules, HashMap::from(expected.map(|(label, rule)| (label.to_owned(), rule))));
}

#[test]
fn the_end_of_a_signal_handler_is_known_by_its_code() {
    // As in musl, and as in Go, where a table describes it as any function.
    let source = "
        ret
        nop
    restorer:
        mov     $15, %rax
        syscall
    behind:
        ret
    described:
        .cfi_startproc
        nop
    restorer_2:
        mov     $15, %eax
        syscall
    behind_2:
        int3
        .cfi_endproc
    ";
    let elf = built("signal.S", source, &["-shared", "-nostdlib"]);
    let table = compile(&elf, None).unwrap();
    assert_sound(&table);
    let lookup = Lookup::new(&elf, &table);
    let offsets: HashMap<String, u64> = symbols(&elf).into_iter().collect();
    for (from, to, before, behind) in [
        ("restorer", "behind", Rule::NONE, Rule::NONE),
        ("restorer_2", "behind_2", Rule::NONE, rule(Base::Rsp, 8, 0)),
    ] {
        for offset in offsets[from] - 1..offsets[to] {
            assert_eq!(lookup.at_offset(offset), Rule::SIGNAL_FRAME);
        }
        assert_eq!([offsets[from] - 2, offsets[to]].map(|at| lookup.at_offset(at)), [before, behind]);
    }
}

#[test]
fn a_context_begins_where_its_function_returns_to() {
    // As in glibc, with a landing pad as some distributions build it.
    let source = "
        ret
        nop
    start_context:
        .cfi_startproc
        endbr64
        mov     %rbx, %rsp
        mov     (%rsp), %rdi
        test    %rdi, %rdi
        je      1f
        call    *%rax
    1:  call    *%rax
        hlt
        .cfi_endproc
    behind:
        ret
    ";
    let elf = built("context.s", source, &["-shared", "-nostdlib"]);
    let table = compile(&elf, None).unwrap();
    assert_sound(&table);
    let lookup = Lookup::new(&elf, &table);
    let offsets: HashMap<String, u64> = symbols(&elf).into_iter().collect();
    let [start, behind] = ["start_context", "behind"].map(|label| offsets[label]);
    assert_eq!([start - 2, behind].map(|offset| lookup.at_offset(offset)), [Rule::NONE; 2]);
    assert!((start - 1..behind).all(|offset| lookup.at_offset(offset) == Rule::OUTERMOST));
}

#[test]
fn code_with_frame_pointers_needs_no_table() {
    let source = "
        int outside(int *); int with_alloca(int n)
        { int *p = __builtin_alloca(n); return outside(p) + p[0]; }
        int plain(int n) { int v[4] = {n}; return outside(v) + v[1]; }";
    let flags = ["-shared", "-fPIC", "-O2", "-nostdlib", "-fno-asynchronous-unwind-tables"];
    let rules = |flag: &str| {
        let elf = built("frames.c", source, &[flags.as_slice(), &[flag]].concat());
        let table = compile(&elf, None).unwrap();
        assert_sound(&table);
        let rows = &table.words[table.geometry.rows_at as usize..];
        let rules: HashSet<Rule> = rows.iter().map(|row| Rule((row >> 32) as u32)).collect();
        rules
    };
    assert_eq!(rules("-fno-omit-frame-pointer"), HashSet::from([Rule::NONE, rule(Base::Rbp, 16, -16)]));
}

#[test]
fn a_frame_pointer_counts_to_the_end_of_its_function() {
    // First what GCC's own start files run when a library is unloaded.
    let source = "
        cmpb    $0, 64(%rip)
        jne     1f
        push    %rbp
        cmpq    $0, 64(%rip)
        mov     %rsp, %rbp
        je      2f
        call    *%rax
    r_framed:
    2:  call    *%rcx
    r_behind_a_jump:
        pop     %rbp
        ret
        nop
    1:  ret
        test    %rdi, %rdi
        je      3f
        push    %rbx
        call    *%rax
    r_wrapped:
        pop     %rbx
    3:  ret
        push    %rbp
        mov     %rsp, %rbp
        jmp     *8(,%rdi,8)
        call    *%rax
    r_case:
        jmp     4f
        hlt
    4:  call    *%rax
    r_joined:
        leave
        jmp     *%rcx
        sub     $8, %rsp
        call    *%rax
    r_other:
        ret
    ";
    let rules = rules_by_label(&built("frames.s", source, &["-shared", "-nostdlib"]));
    let framed = rule(Base::Rbp, 16, -16);
    let expected = [
        ("r_framed", framed),
        ("r_behind_a_jump", framed),
        ("r_wrapped", Rule::NONE),
        ("r_case", framed),
        ("r_joined", framed),
        ("r_other", Rule::NONE),
    ];
    assert_eq!(rules, HashMap::from(expected.map(|(label, rule)| (label.to_owned(), rule))));
}

#[test]
fn what_is_no_x86_64_program_is_refused() {
    assert!(matches!(compile(b"#!/bin/sh\n", None), Err(UnwindError::NotElf(_))));
    let mut elf = assembled("");
    elf[0x12] = 183; // e_machine: AArch64
    assert!(matches!(compile(&elf, None), Err(UnwindError::WrongMachine { machine: 183 })));
    let object_file = built("rows.S", ASSEMBLY, &["-c"]);
    assert!(matches!(compile(&object_file, None), Err(UnwindError::NoCode)));
}
