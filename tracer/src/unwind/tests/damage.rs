//! Damaged files: an error or a sound table, never a panic, and no more words than bytes.

use super::super::compile;
use super::super::image::Image;
use super::assembly::assembled;
use super::tables::assert_sound;
use super::{built, without_section_headers};

const PROGRAM: &str = "
    #include <stdio.h>
    #include <stdlib.h>
    static int less(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }
    int main(int argc, char **argv) {
        int values[64];
        for (int i = 0; i < 64; i++) values[i] = atoi(argv[i % argc]);
        qsort(values, 64, sizeof *values, less);
        for (int i = 0; i < 64; i++) printf(\"%d\\n\", values[i]);
        return 0;
    }";

fn samples() -> Vec<Vec<u8>> {
    let program = built("program.c", PROGRAM, &["-O2", "-g"]);
    let assembly = assembled(".cfi_sections .eh_frame, .debug_frame");
    let stripped = without_section_headers(assembly.clone());
    vec![program, assembly, stripped]
}

fn survives(elf: &[u8]) {
    if let Ok(table) = compile(elf, None) {
        assert!(table.words.len() <= 4 + 2 * elf.len());
        assert_sound(&table);
    }
}

#[test]
fn a_file_cut_off_anywhere_is_survived() {
    for elf in samples() {
        assert!(compile(&elf, None).unwrap().words.len() > 20);
        for length in (0..elf.len()).step_by(61) {
            survives(&elf[..length]);
        }
    }
}

#[test]
fn random_damage_is_survived() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        // xorshift64, so that a failure repeats.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for elf in samples() {
        for _ in 0..400 {
            let mut damaged = elf.clone();
            for _ in 0..1 + random() % 40 {
                let at = random() as usize % damaged.len();
                damaged[at] = random() as u8;
            }
            survives(&damaged);
        }
    }
}

#[test]
fn damaged_tables_are_survived() {
    // The tables are a small part of the file, so they are hit on their own, too.
    let elf = assembled("");
    let file = object::read::elf::ElfFile64::<object::LittleEndian>::parse(elf.as_slice()).unwrap();
    let section = object::Object::section_by_name(&file, ".eh_frame").unwrap();
    let (offset, length) = object::ObjectSection::file_range(&section).unwrap();
    for at in offset..offset + length {
        for value in [0x00, 0x01, 0x0a, 0x0b, 0x7f, 0x80, 0xff] {
            let mut damaged = elf.clone();
            damaged[at as usize] = value;
            survives(&damaged);
        }
    }
}

#[test]
fn segments_that_claim_the_same_bytes_are_decoded_once() {
    let mut elf = assembled("");
    // 2,000 program headers behind the file, each an executable segment of nearly the whole file.
    let count = 2_000_u16;
    let headers_offset = elf.len() as u64;
    for index in 0..u64::from(count) {
        elf.extend(1_u32.to_le_bytes()); // PT_LOAD
        elf.extend(5_u32.to_le_bytes()); // readable, executable
        for word in [1, index << 32, 0, headers_offset, headers_offset, 4096] {
            elf.extend(u64::to_le_bytes(word));
        }
    }
    elf[0x20..0x28].copy_from_slice(&headers_offset.to_le_bytes()); // e_phoff
    elf[0x38..0x3a].copy_from_slice(&count.to_le_bytes()); // e_phnum
    let image = Image::parse(&elf).unwrap();
    let decoded: usize = image.segments().iter().map(|segment| segment.bytes.len()).sum();
    assert!((1..=elf.len()).contains(&decoded), "{decoded} of {} bytes", elf.len());
    survives(&without_section_headers(elf));
}
