//! The linked ELF object made fit for shipping.

use anyhow::Result;
use object::build::elf::{Builder, SectionData};
use object::elf::SHT_STRTAB;

/// The object without its DWARF sections: the loader and the verifier read BTF, and DWARF is nine tenths of
/// the bytes. Fails when the bytes are no ELF object.
pub fn without_dwarf(linked: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(linked)?;
    for section in &mut builder.sections {
        let name = section.name.as_slice();
        let name = name.strip_prefix(b".rel").unwrap_or(name);
        section.delete |= name.starts_with(b".debug_");
    }
    builder.delete_orphans();
    // LLVM keeps the names of sections and symbols in one table, which is read as that of the symbols.
    if !builder.sections.iter().any(|section| matches!(section.data, SectionData::SectionString)) {
        let section = builder.sections.add();
        section.name = ".shstrtab".into();
        section.sh_type = SHT_STRTAB;
        section.data = SectionData::SectionString;
    }
    let mut stripped = Vec::new();
    builder.write(&mut stripped)?;
    Ok(stripped)
}

#[cfg(test)]
mod tests {
    use object::{Object as _, ObjectSection as _, elf};

    use super::*;

    fn object_with(sections: &[&str]) -> Vec<u8> {
        let mut builder = Builder::new(object::Endianness::Little, true);
        builder.header.e_type = elf::ET_REL;
        builder.header.e_machine = elf::EM_BPF;
        for name in sections.iter().copied().chain([".shstrtab"]) {
            let section = builder.sections.add();
            section.name = name.into();
            section.sh_type = if name == ".shstrtab" { elf::SHT_STRTAB } else { elf::SHT_PROGBITS };
            section.data = if name == ".shstrtab" {
                SectionData::SectionString
            } else {
                SectionData::Data(name.as_bytes().into())
            };
        }
        let mut bytes = Vec::new();
        builder.write(&mut bytes).expect("an object");
        bytes
    }

    #[test]
    fn dwarf_goes_and_btf_and_code_stay() {
        let linked = object_with(&["uprobe", ".debug_info", ".BTF", ".BTF.ext", ".debug_line"]);
        let stripped = without_dwarf(&linked).expect("an object");
        let file = object::File::parse(&*stripped).expect("an object");
        let names: Vec<_> =
            file.sections().filter_map(|section| section.name().ok().map(str::to_owned)).collect();
        for kept in ["uprobe", ".BTF", ".BTF.ext"] {
            let section = file.section_by_name(kept).expect(kept);
            assert_eq!(section.data().expect("data"), kept.as_bytes());
        }
        assert!(names.iter().all(|name| !name.contains("debug")), "{names:?}");
    }

    #[test]
    fn what_is_no_object_is_an_error() {
        assert!(without_dwarf(b"").is_err());
        assert!(without_dwarf(&object_with(&["uprobe"])[..70]).is_err());
    }
}
