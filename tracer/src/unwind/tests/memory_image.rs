//! The image that the kernel maps.

use super::super::{compile, vdso};
use super::Lookup;
use object::{Object, ObjectSymbol};
use tracer_common::unwind_table::{Base, Rule};

#[test]
fn the_vdso_of_this_process_has_a_table() {
    let vdso = vdso::read(std::process::id()).unwrap().expect("a vdso");
    // As the kernel tells it to this process itself.
    // SAFETY: reads a number.
    assert_eq!(vdso.start_addr, unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) });
    let table = compile(&vdso.bytes, None).unwrap();
    let lookup = Lookup::new(&vdso.bytes, &table);
    let file = object::File::parse(&*vdso.bytes).unwrap();
    let functions: Vec<_> = file.dynamic_symbols().filter(|symbol| symbol.size() > 0).collect();
    assert!(functions.iter().any(|symbol| symbol.name() == Ok("__vdso_clock_gettime")));
    for function in functions {
        assert_eq!(lookup.at(function.address()), Rule::new(Base::Rsp, 8, 0).unwrap(), "{function:?}");
    }
}
