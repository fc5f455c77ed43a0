//! Programs compiled here print where they call from: the return address, the function and the line are
//! known from the program itself, not from another reader of symbols.

mod program;

use std::{fs, os::unix::fs::FileExt};

use object::{Object as _, ObjectSection as _};

use self::program::{C_SOURCE, CPP_SOURCE, Program, module, run};
use super::*;
use crate::{debuginfo::hexadecimal, model::FrameKind};

fn functions(frames: &[Frame]) -> Vec<Option<&str>> {
    frames.iter().map(|frame| frame.function.as_deref()).collect()
}

/// A program in which `label` was called without debug information: the function alone is known.
fn assert_symbol_only(frames: &[Frame], function: Option<&str>) {
    assert_eq!(functions(frames), [function]);
    assert_eq!((&frames[0].file, frames[0].line), (&None, None));
    assert!(frames[0].module.is_some() && frames[0].offset.is_some());
}

#[test]
fn a_call_has_its_function_file_and_line() {
    let program = Program::c(&["-g"]);
    let call = program.calls["static"];
    let expected = Frame {
        kind: FrameKind::Native,
        function: Some("hidden".to_owned()),
        file: Some(program.source.to_str().unwrap().to_owned()),
        line: Some(call.line),
        module: Some(program.exe.to_str().unwrap().to_owned()),
        address: None,
        offset: Some(call.offset),
        inlined: false,
    };
    assert_eq!(program.frames("static"), [expected]);
}

#[test]
fn a_short_name_of_c_is_no_type_of_cpp() {
    for flags in [&["-g"][..], &[]] {
        assert_eq!(functions(&Program::c(flags).frames("short")), [Some("rd")], "{flags:?}");
    }
}

#[test]
fn inlined_functions_come_innermost_first_with_their_call_lines() {
    let program = Program::c(&["-g"]);
    let call = program.calls["inlined"];
    let frames = program.frames("inlined");
    assert_eq!(functions(&frames), [Some("inner"), Some("middle"), Some("outer")]);
    assert_eq!(frames.iter().map(|frame| frame.inlined).collect::<Vec<_>>(), [true, true, false]);
    // The three functions are on three lines, one below the other.
    let lines: Vec<_> = frames.iter().map(|frame| frame.line.unwrap()).collect();
    assert_eq!(lines, [call.line, call.line + 1, call.line + 2]);
    assert!(frames.iter().all(|frame| frame.offset == Some(call.offset)));
}

#[test]
fn cpp_names_are_demangled_with_their_arguments() {
    for flags in [&["-g"][..], &[]] {
        let program = Program::build("c++", "calls.cpp", CPP_SOURCE, flags);
        let copied = program.frames("copy").remove(0).function.unwrap();
        assert!(copied.starts_with("shop::(anonymous namespace)::copied(int)"), "{copied}");
        for (label, expected) in [
            ("function", "leak_new()"),
            (
                "template",
                "shop::Box<int>::fill(int, std::__cxx11::basic_string<char, std::char_traits<char>, std::allocator<char> > const&)",
            ),
            ("anonymous", "shop::(anonymous namespace)::count(int)"),
            ("lambda", "main::{lambda(int)#1}::operator()(int) const"),
        ] {
            let frames = program.frames(label);
            assert_eq!(functions(&frames), [Some(expected)], "{label} {flags:?}");
            let line = (!flags.is_empty()).then_some(program.calls[label].line);
            assert_eq!(frames[0].line, line, "{label} {flags:?}");
        }
    }
}

#[test]
fn a_stripped_program_names_exported_functions_only() {
    let program = Program::c(&["-rdynamic"]);
    assert_symbol_only(&program.frames("static"), Some("hidden"));
    program.strip();
    assert_symbol_only(&program.frames("exported"), Some("exported_first"));
    // An exported function lies below: it must not lend its name.
    assert_symbol_only(&program.frames("static"), None);
}

#[test]
fn split_debug_information_is_found_by_build_id() {
    let program = Program::c(&["-g"]);
    let id = ModuleFile::read(&File::open(&program.exe).unwrap()).unwrap().build_id.unwrap();
    let id = hexadecimal(&id);
    let dir = format!("debug/.build-id/{}", &id[..2]);
    run("mkdir", &["-p", &dir], program.path());
    let file = format!("{dir}/{}.debug", &id[2..]);
    run("objcopy", &["--only-keep-debug", "program", &file], program.path());
    program.strip();
    let frames = program.frames("inlined");
    assert_eq!(functions(&frames), [Some("inner"), Some("middle"), Some("outer")]);
    assert_eq!(frames[0].line, Some(program.calls["inlined"].line));
}

#[test]
fn split_debug_information_is_found_by_debug_link_and_checksum() {
    let program = Program::c(&["-g", "-Wl,--build-id=none"]);
    run("mkdir", &[".debug"], program.path());
    run("objcopy", &["--only-keep-debug", "program", ".debug/p.debug"], program.path());
    program.strip();
    run("objcopy", &["--add-gnu-debuglink=.debug/p.debug", "program"], program.path());
    assert_eq!(program.frames("static")[0].line, Some(program.calls["static"].line));
    // The same name with another content is not the file of this program.
    let debug_file = fs::OpenOptions::new().write(true).open(program.path().join(".debug/p.debug")).unwrap();
    debug_file.write_all_at(b"x", debug_file.metadata().unwrap().len()).unwrap();
    assert_symbol_only(&program.frames("static"), None);
}

#[test]
fn a_deleted_or_replaced_file_is_still_the_one_that_was_opened() {
    let program = Program::c(&["-g"]);
    let other = Program::build("cc", "other.c", &C_SOURCE.replace("hidden", "other"), &["-g"]);
    let modules = program.modules();
    let line = program.calls["static"].line;
    fs::copy(&other.exe, program.path().join("new")).unwrap();
    fs::rename(program.path().join("new"), &program.exe).unwrap();
    let (frames, problems) = program.frames_and_problems(&modules, "static");
    assert_eq!((functions(&frames), frames[0].line, problems), (vec![Some("hidden")], Some(line), vec![]));
    fs::remove_file(&program.exe).unwrap();
    let (frames, problems) = program.frames_and_problems(&modules, "static");
    assert_eq!((functions(&frames), frames[0].line, problems), (vec![Some("hidden")], Some(line), vec![]));
}

#[test]
fn a_recorded_module_is_opened_by_path_only_with_the_recorded_build_id() {
    let program = Program::c(&["-g"]);
    let id = ModuleFile::read(&File::open(&program.exe).unwrap()).unwrap().build_id.unwrap();
    let recorded = Module { build_id: Some(hexadecimal(&id)), ..module(&program.exe) };
    let place = program.calls["static"].place();
    let name = |module: &Module, mut symbolizer: Symbolizer| {
        let mut named = symbolizer.name(&[(module.clone(), None)], &[place]);
        (named.remove(&place).unwrap(), symbolizer.problems().to_vec())
    };
    let (frames, problems) = name(&recorded, Symbolizer::for_recording());
    assert_eq!((functions(&frames), problems), (vec![Some("hidden")], vec![]));
    // Live, a path is never opened.
    let (frames, problems) = name(&recorded, Symbolizer::new());
    assert_symbol_only(&frames, None);
    assert!(problems[0].contains("not available"), "{problems:?}");

    let other = Program::build("cc", "other.c", &C_SOURCE.replace("hidden", "other"), &["-g"]);
    fs::rename(&other.exe, &program.exe).unwrap();
    let (frames, problems) = name(&recorded, Symbolizer::for_recording());
    assert_symbol_only(&frames, None);
    assert!(problems[0].contains("build id"), "{problems:?}");
    let (frames, problems) = name(&module(&program.exe), Symbolizer::for_recording());
    assert_symbol_only(&frames, None);
    assert!(problems[0].contains("without a build id"), "{problems:?}");
}

#[test]
fn an_unmapped_address_is_all_that_its_frame_has() {
    let place = CodeAddr::Unmapped { addr: 0x7f00_1234 };
    let named = Symbolizer::new().name(&[], &[place, place]);
    let expected = Frame { address: Some("0x7f001234".to_owned()), ..unnamed(None, None) };
    assert_eq!(named, HashMap::from([(place, vec![expected])]));
}

#[test]
fn a_module_that_is_unknown_or_no_elf_file_gives_unnamed_frames_and_one_reason() {
    let mut text = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut text, b"#!/bin/sh\n").unwrap();
    let places = [(0, 5), (0, 6), (9, 5)].map(|(module, offset)| CodeAddr::InFile { module, offset });
    let mut symbolizer = Symbolizer::new();
    let modules = [(module(text.path()), Some(text.reopen().unwrap()))];
    let named = symbolizer.name(&modules, &places);
    let path = text.path().to_str();
    assert_eq!(named[&places[1]], [unnamed(path, Some(6))]);
    assert_eq!(named[&places[2]], [unnamed(None, Some(5))]);
    assert_eq!(symbolizer.problems().len(), 1, "{:?}", symbolizer.problems());
    assert!(symbolizer.problems()[0].contains("no 64-bit ELF"), "{:?}", symbolizer.problems());
}

#[test]
fn offsets_outside_the_code_are_unnamed() {
    let program = Program::c(&["-g"]);
    let places = [0, 1, u64::MAX].map(|offset| CodeAddr::InFile { module: 0, offset });
    for frames in Symbolizer::new().name(&program.modules(), &places).values() {
        assert_symbol_only(frames, None);
    }
}

#[test]
fn packed_symbols_of_a_stripped_program_are_read_beside_its_exported_ones() {
    let program = Program::c(&["-rdynamic"]);
    run("objcopy", &["--keep-symbol=hidden", "-S", "program", "mini"], program.path());
    // As Fedora does: the packed file keeps no symbol that `.dynsym` has.
    run("xz", &["mini"], program.path());
    program.strip();
    run("objcopy", &["--add-section", ".gnu_debugdata=mini.xz", "program"], program.path());
    assert_symbol_only(&program.frames("static"), Some("hidden"));
    assert_symbol_only(&program.frames("exported"), Some("exported_first"));

    fs::write(program.path().join("mini.xz"), b"no xz").unwrap();
    run("objcopy", &["--update-section", ".gnu_debugdata=mini.xz", "program"], program.path());
    let (frames, problems) = program.frames_and_problems(&program.modules(), "exported");
    assert_symbol_only(&frames, Some("exported_first"));
    assert!(problems[0].contains(".gnu_debugdata"), "{problems:?}");
}

#[test]
fn a_symbol_without_a_size_does_not_reach_into_another_section() {
    let other =
        C_SOURCE.replace("static __attribute__((noipa))", "__attribute__((noipa, section(\"other\")))");
    // The last symbol before the section `other`.
    let source = other + "__asm__(\".text\\n.globl bare\\nbare: ret\");\n";
    let program = Program::build("cc", "calls.c", &source, &["-fno-toplevel-reorder"]);
    assert_symbol_only(&program.frames("static"), Some("hidden"));
    run("objcopy", &["--strip-symbol=hidden", "program"], program.path());
    assert_symbol_only(&program.frames("static"), None);
}

#[test]
fn the_call_is_named_where_nothing_follows_it_in_its_function() {
    let program = Program::c(&["-g"]);
    let frames = program.frames("noreturn");
    let line = program.calls["noreturn"].line;
    assert_eq!((functions(&frames), frames[0].line), (vec![Some("ends_in_a_call")], Some(line)));
}

#[test]
fn rust_names_of_both_manglings_are_demangled() {
    let declared = |symbol: &str| format!("void hidden(void) __asm__(\"{symbol}\");\n");
    for (symbol, expected) in [
        ("_ZN5names4shop9leak_rust17h0123456789abcdefE", "names::shop::leak_rust"),
        ("_RNvNtCs1234_5names4shop9leak_rust", "names::shop::leak_rust"),
    ] {
        let source = C_SOURCE
            .replace("static __attribute__((noipa))", "__attribute__((noipa))")
            .replace("#include \"calls.h\"", &format!("#include \"calls.h\"\n{}", declared(symbol)));
        let program = Program::build("cc", "calls.c", &source, &[]);
        assert_symbol_only(&program.frames("static"), Some(expected));
    }
}

#[test]
fn compressed_debug_information_is_read_unless_its_size_or_method_is_out_of_reach() {
    let program = Program::c(&["-g"]);
    run("objcopy", &["--compress-debug-sections=zlib", "program"], program.path());
    let line = program.calls["static"].line;
    assert_eq!(program.frames("static")[0].line, Some(line));

    let bytes = fs::read(&program.exe).unwrap();
    let elf = object::read::elf::ElfFile64::<object::Endianness>::parse(&*bytes).unwrap();
    let header = elf.section_by_name(".debug_info").unwrap().file_range().unwrap().0;
    // Fields of `Elf64_Chdr`: the method (2 is zstd) and the size when unpacked.
    for (field, value) in [(0, &2_u32.to_le_bytes()[..]), (8, &(1_u64 << 60).to_le_bytes())] {
        fs::write(&program.exe, &bytes).unwrap();
        let file = fs::OpenOptions::new().write(true).open(&program.exe).unwrap();
        file.write_all_at(value, header + field).unwrap();
        let (frames, problems) = program.frames_and_problems(&program.modules(), "static");
        assert_symbol_only(&frames, Some("hidden"));
        assert!(problems[0].contains("compressed"), "{problems:?}");
    }
}

#[test]
fn damaged_files_give_frames_and_never_a_panic() {
    let program = Program::c(&["-g"]);
    let whole = fs::read(&program.exe).unwrap();
    let path = program.path().join("damaged");
    let places: Vec<_> = program.calls.values().map(|call| call.place()).collect();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random as usize % below
    };
    let mut complaints = 0;
    for round in 0..120 {
        let mut bytes = whole.clone();
        if round % 2 == 0 {
            bytes.truncate(next(bytes.len()));
        } else {
            // The ELF header, or the section headers at the end, or anything.
            let end = bytes.len();
            let (from, length) = [(0, 64), (end - 2048, 2048), (0, end)][round % 3];
            for _ in 0..4 {
                bytes[from + next(length)] = next(256) as u8;
            }
        }
        fs::write(&path, &bytes).unwrap();
        let modules = [(module(&path), Some(File::open(&path).unwrap()))];
        let mut symbolizer = Symbolizer::new();
        let named = symbolizer.name(&modules, &places);
        assert!(places.iter().all(|place| !named[place].is_empty()), "round {round}");
        complaints += symbolizer.problems().len();
    }
    assert!(complaints >= 60, "every truncated file is told of: {complaints}");
}
