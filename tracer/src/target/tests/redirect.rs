//! Second addresses of functions behind CPython's tables, in libraries that are built like it.

use super::*;
use crate::target::pymalloc::{CannotRedirect, RedirectTables};

/// Tables and all the functions that call through them, inlined copies behind guards.
const PYTHON: &str = r#"
#include <stddef.h>
typedef struct {
    void *ctx;
    void *(*malloc)(void *, size_t);
    void *(*calloc)(void *, size_t, size_t);
    void *(*realloc)(void *, void *, size_t);
    void (*free)(void *, void *);
} Table;
static char heap[1 << 16];
static void *own_malloc(void *ctx, size_t size) { return heap + size; }
static void *own_calloc(void *ctx, size_t count, size_t size) { return heap + count * size; }
static void *own_realloc(void *ctx, void *block, size_t size) { return block ? block : heap + size; }
static void own_free(void *ctx, void *block) { heap[0] += block != NULL; }
static void *other_malloc(void *ctx, size_t size) { return heap + 2 * size; }
#define FUNCTIONS own_malloc, own_calloc, own_realloc, own_free
static Table raw = {0, FUNCTIONS}, mem = {CONTEXT, MEM_FUNCTIONS}, object = {0, FUNCTIONS};
#define DOMAIN(name, table) \
    void *name##_Malloc(size_t n) { return table.malloc == own_malloc ? heap + n : table.malloc(table.ctx, n); } \
    void *name##_Calloc(size_t m, size_t n) { return table.calloc(table.ctx, m, n); } \
    void *name##_Realloc(void *p, size_t n) { return table.realloc(table.ctx, p, n); } \
    void name##_Free(void *p) { table.free(table.ctx, p); }
DOMAIN(PyMem_Raw, raw)
DOMAIN(PyMem, mem)
DOMAIN(PyObject, object)
void set(Table to) { raw = mem = object = to; mem.ctx = heap; }
const unsigned long Py_Version = 0x030c03f0;
const char *Py_GetVersion(void) { return "3.12.3"; }
"#;

/// `PyMem_RawMalloc` and its kin have no underscore in their names.
fn found(options: &[&str]) -> Result<RedirectTables, CannotRedirect> {
    let directory = TempDir::new().unwrap();
    let source = PYTHON.replace(
        "DOMAIN(PyMem_Raw, raw)",
        "void *PyMem_RawMalloc(size_t n) { return raw.malloc(raw.ctx, n); }",
    );
    let all = [&["-shared", "-fPIC", "-DCONTEXT=0", "-DMEM_FUNCTIONS=FUNCTIONS"], options].concat();
    let library = build(directory.path(), "libpython3.12.so.1.0", &source, &all);
    let file = fs::File::open(&library).unwrap();
    let inspected = inspect(&file, library.to_str().unwrap(), 7, false).unwrap();
    let cpython = inspected.cpython.unwrap();
    if let Ok(tables) = &cpython.redirect {
        let elf = Elf::open(&file).unwrap();
        for function in &tables.functions {
            assert_eq!(elf.file_offset(function.vaddr), Some(function.file_offset));
            assert_eq!(elf.bytes_at_vaddr(function.vaddr, 4), Some(&function.code[..4]));
        }
    }
    cpython.redirect
}

#[test]
fn code_for_cet_has_second_addresses() {
    for more in [&[][..], &["-s"], &["-Wl,-z,lazy", "-O2"]] {
        let tables = found(&[&["-fcf-protection=full"], more].concat()).unwrap();
        let functions: Vec<Function> = tables.functions.iter().map(|function| function.function).collect();
        let expected = [
            Function::PyObjectMalloc,
            Function::PyObjectCalloc,
            Function::PyObjectRealloc,
            Function::PyObjectFree,
        ];
        assert_eq!(functions, expected);
        // Two tables of a context and four pointers; frees come first.
        let mut vaddrs: Vec<u64> = tables.pointers.iter().map(|pointer| pointer.vaddr).collect();
        let owns: Vec<u64> = tables.pointers.iter().map(|pointer| pointer.own).collect();
        let order = [3, 3, 2, 2, 1, 1, 0, 0].map(|index: usize| tables.functions[index].vaddr);
        assert_eq!(owns, order);
        assert!(tables.pointers.iter().all(|pointer| pointer.second == pointer.own + 4));
        vaddrs.sort_unstable();
        let steps: Vec<u64> = vaddrs.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(matches!(steps[..], [8, 8, 8, _, 8, 8, 8]), "{steps:?}");
    }
}

#[test]
fn what_cannot_be_redirected_is_told_with_the_reason() {
    let without = found(&["-fcf-protection=none"]);
    assert_eq!(without, Err(CannotRedirect::NoSecondEntry("PyObject_Malloc")));
    assert!(without.unwrap_err().to_string().contains("-fcf-protection"));
    let cet = "-fcf-protection=full";
    assert_eq!(found(&[cet, "-UCONTEXT", "-DCONTEXT=heap"]), Err(CannotRedirect::NotPymalloc));
    let functions = "-DMEM_FUNCTIONS=other_malloc, own_calloc, own_realloc, own_free";
    assert_eq!(found(&[cet, "-UMEM_FUNCTIONS", functions]), Err(CannotRedirect::NotPymalloc));
}
