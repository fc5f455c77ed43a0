//! The names under which allocators offer the functions that are probed.
//!
//! A name stands under a [`Function`] when its arguments have the same places: all that a probe knows of a
//! call is which argument is the size, and which the old block. Functions that take a heap first
//! (`mi_heap_malloc`, `moz_arena_malloc`, `je_arena_…`) have their old block in argument 1 and are in no
//! list: half of such a family would give false rows. Nor are those of several sizes that may throw
//! (`mi_new_n`), for which there is no function.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::LazyLock;

use tracer_common::probe::Function::{
    self, AlignedAlloc, Calloc, Dallocx, Free, FreeAlignedSized, FreeSized, Malloc, Mallocx, Memalign, Mmap,
    OperatorDelete, OperatorNew, PosixMemalign, Pvalloc, Rallocx, Realloc, Reallocarray, Sdallocx, Valloc,
    Xallocx,
};

/// Names other than the functions' own.
const OTHER_NAMES: &[(&str, Function)] = &[
    // On 64-bit systems `mmap64` is `mmap`.
    ("mmap64", Mmap),
    // glibc before 2.26, and allocators that stand in for it.
    ("cfree", Free),
    // Solaris and mimalloc 2.
    ("vfree", Free),
    ("_aligned_malloc", Malloc),
    // FreeBSD. When it fails it gives the block back, which is not seen.
    ("reallocf", Realloc),
    // C++17 with 64-bit std::size_t, Itanium ABI mangling (c++filt); _Znwm and _ZdlPv are the own names.
    ("_Znam", OperatorNew),
    ("_ZnwmRKSt9nothrow_t", OperatorNew),
    ("_ZnamRKSt9nothrow_t", OperatorNew),
    ("_ZnwmSt11align_val_t", OperatorNew),
    ("_ZnamSt11align_val_t", OperatorNew),
    ("_ZnwmSt11align_val_tRKSt9nothrow_t", OperatorNew),
    ("_ZnamSt11align_val_tRKSt9nothrow_t", OperatorNew),
    ("_ZdaPv", OperatorDelete),
    ("_ZdlPvm", OperatorDelete),
    ("_ZdaPvm", OperatorDelete),
    ("_ZdlPvRKSt9nothrow_t", OperatorDelete),
    ("_ZdaPvRKSt9nothrow_t", OperatorDelete),
    ("_ZdlPvSt11align_val_t", OperatorDelete),
    ("_ZdaPvSt11align_val_t", OperatorDelete),
    ("_ZdlPvmSt11align_val_t", OperatorDelete),
    ("_ZdaPvmSt11align_val_t", OperatorDelete),
    ("_ZdlPvSt11align_val_tRKSt9nothrow_t", OperatorDelete),
    ("_ZdaPvSt11align_val_tRKSt9nothrow_t", OperatorDelete),
    // Google's tcmalloc (tcmalloc/new_extension.h, 2023 on): a hint, or the size beside the address.
    ("_Znwm12__hot_cold_t", OperatorNew),
    ("_Znam12__hot_cold_t", OperatorNew),
    ("_ZnwmRKSt9nothrow_t12__hot_cold_t", OperatorNew),
    ("_ZnamRKSt9nothrow_t12__hot_cold_t", OperatorNew),
    ("_ZnwmSt11align_val_t12__hot_cold_t", OperatorNew),
    ("_ZnamSt11align_val_t12__hot_cold_t", OperatorNew),
    ("_ZnwmSt11align_val_tRKSt9nothrow_t12__hot_cold_t", OperatorNew),
    ("_ZnamSt11align_val_tRKSt9nothrow_t12__hot_cold_t", OperatorNew),
    ("__size_returning_new", OperatorNew),
    ("__size_returning_new_aligned", OperatorNew),
    ("__size_returning_new_hot_cold", OperatorNew),
    ("__size_returning_new_aligned_hot_cold", OperatorNew),
    // gperftools 2.10 (src/gperftools/tcmalloc.h.in).
    ("tc_malloc", Malloc),
    ("tc_malloc_skip_new_handler", Malloc),
    ("tc_calloc", Calloc),
    ("tc_realloc", Realloc),
    ("tc_free", Free),
    ("tc_cfree", Free),
    ("tc_free_sized", FreeSized),
    ("tc_memalign", Memalign),
    ("tc_posix_memalign", PosixMemalign),
    ("tc_valloc", Valloc),
    ("tc_pvalloc", Pvalloc),
    ("tc_new", OperatorNew),
    ("tc_new_nothrow", OperatorNew),
    ("tc_new_aligned", OperatorNew),
    ("tc_new_aligned_nothrow", OperatorNew),
    ("tc_newarray", OperatorNew),
    ("tc_newarray_nothrow", OperatorNew),
    ("tc_newarray_aligned", OperatorNew),
    ("tc_newarray_aligned_nothrow", OperatorNew),
    ("tc_delete", OperatorDelete),
    ("tc_delete_nothrow", OperatorDelete),
    ("tc_delete_sized", OperatorDelete),
    ("tc_delete_aligned", OperatorDelete),
    ("tc_delete_aligned_nothrow", OperatorDelete),
    ("tc_delete_sized_aligned", OperatorDelete),
    ("tc_deletearray", OperatorDelete),
    ("tc_deletearray_nothrow", OperatorDelete),
    ("tc_deletearray_sized", OperatorDelete),
    ("tc_deletearray_aligned", OperatorDelete),
    ("tc_deletearray_aligned_nothrow", OperatorDelete),
    ("tc_deletearray_sized_aligned", OperatorDelete),
    // Google's tcmalloc (tcmalloc/tcmalloc.h, 2020 to 2025): what the standard names are aliases of.
    ("TCMallocInternalMalloc", Malloc),
    ("TCMallocInternalCalloc", Calloc),
    ("TCMallocInternalRealloc", Realloc),
    ("TCMallocInternalReallocArray", Reallocarray),
    ("TCMallocInternalFree", Free),
    ("TCMallocInternalCfree", Free),
    ("TCMallocInternalFreeSized", FreeSized),
    ("TCMallocInternalFreeAlignedSized", FreeAlignedSized),
    ("TCMallocInternalSdallocx", Sdallocx),
    ("TCMallocInternalMemalign", Memalign),
    ("TCMallocInternalAlignedAlloc", AlignedAlloc),
    ("TCMallocInternalPosixMemalign", PosixMemalign),
    ("TCMallocInternalValloc", Valloc),
    ("TCMallocInternalPvalloc", Pvalloc),
    ("TCMallocInternalNew", OperatorNew),
    ("TCMallocInternalNewNothrow", OperatorNew),
    ("TCMallocInternalNewAligned", OperatorNew),
    ("TCMallocInternalNewAlignedNothrow", OperatorNew),
    ("TCMallocInternalNewArray", OperatorNew),
    ("TCMallocInternalNewArrayNothrow", OperatorNew),
    ("TCMallocInternalNewArrayAligned", OperatorNew),
    ("TCMallocInternalNewArrayAlignedNothrow", OperatorNew),
    ("TCMallocInternalDelete", OperatorDelete),
    ("TCMallocInternalDeleteNothrow", OperatorDelete),
    ("TCMallocInternalDeleteSized", OperatorDelete),
    ("TCMallocInternalDeleteAligned", OperatorDelete),
    ("TCMallocInternalDeleteAlignedNothrow", OperatorDelete),
    ("TCMallocInternalDeleteSizedAligned", OperatorDelete),
    ("TCMallocInternalDeleteArray", OperatorDelete),
    ("TCMallocInternalDeleteArrayNothrow", OperatorDelete),
    ("TCMallocInternalDeleteArraySized", OperatorDelete),
    ("TCMallocInternalDeleteArrayAligned", OperatorDelete),
    ("TCMallocInternalDeleteArrayAlignedNothrow", OperatorDelete),
    ("TCMallocInternalDeleteArraySizedAligned", OperatorDelete),
    // mimalloc 1.6 to 3.3 (include/mimalloc.h). mi_expand resizes where the block is, or fails.
    ("mi_malloc", Malloc),
    ("mi_malloc_small", Malloc),
    ("mi_malloc_aligned", Malloc),
    ("mi_malloc_aligned_at", Malloc),
    ("mi_zalloc", Malloc),
    ("mi_zalloc_small", Malloc),
    ("mi_zalloc_aligned", Malloc),
    ("mi_zalloc_aligned_at", Malloc),
    ("mi_umalloc", Malloc),
    ("mi_umalloc_small", Malloc),
    ("mi_umalloc_aligned", Malloc),
    ("mi_uzalloc_small", Malloc),
    ("mi_uzalloc_aligned", Malloc),
    ("mi_mallocn", Calloc),
    ("mi_ucalloc", Calloc),
    ("mi_calloc", Calloc),
    ("mi_calloc_aligned", Calloc),
    ("mi_calloc_aligned_at", Calloc),
    ("mi_realloc", Realloc),
    ("mi_reallocf", Realloc),
    ("mi_realloc_aligned", Realloc),
    ("mi_realloc_aligned_at", Realloc),
    ("mi_rezalloc", Realloc),
    ("mi_rezalloc_aligned", Realloc),
    ("mi_rezalloc_aligned_at", Realloc),
    ("mi_urealloc", Realloc),
    ("mi_expand", Realloc),
    ("mi__expand", Realloc),
    ("mi_reallocn", Reallocarray),
    ("mi_reallocarray", Reallocarray),
    ("mi_recalloc", Reallocarray),
    ("mi_recalloc_aligned", Reallocarray),
    ("mi_recalloc_aligned_at", Reallocarray),
    ("mi_aligned_recalloc", Reallocarray),
    ("mi_aligned_offset_recalloc", Reallocarray),
    ("mi_free", Free),
    ("mi_free_small", Free),
    ("mi_ufree", Free),
    ("mi_cfree", Free),
    ("mi_free_size", FreeSized),
    ("mi_free_size_aligned", FreeSized),
    ("mi_free_aligned", FreeSized),
    ("mi_memalign", Memalign),
    ("mi_aligned_alloc", AlignedAlloc),
    ("mi_posix_memalign", PosixMemalign),
    ("mi_valloc", Valloc),
    ("mi_pvalloc", Pvalloc),
    ("mi_new", OperatorNew),
    ("mi_new_nothrow", OperatorNew),
    ("mi_new_aligned", OperatorNew),
    ("mi_new_aligned_nothrow", OperatorNew),
];

/// What jemalloc 3.5 to 5.3.1 puts its prefix before (`configure.ac`, `public_syms`). The prefix is chosen
/// when it is built: `je_` by many, `_rjem_` by tikv-jemalloc-sys, `jemk_` by memkind, `je_arrow_` by
/// Arrow.
const JEMALLOC: &[(&str, Function)] = &[
    ("malloc", Malloc),
    ("calloc", Calloc),
    ("realloc", Realloc),
    ("free", Free),
    ("posix_memalign", PosixMemalign),
    ("aligned_alloc", AlignedAlloc),
    ("memalign", Memalign),
    ("valloc", Valloc),
    ("pvalloc", Pvalloc),
    ("free_sized", FreeSized),
    ("free_aligned_sized", FreeAlignedSized),
    ("mallocx", Mallocx),
    ("rallocx", Rallocx),
    ("xallocx", Xallocx),
    ("dallocx", Dallocx),
    ("sdallocx", Sdallocx),
];

/// Those of jemalloc's names that no other library has: two of them with the same prefix are jemalloc.
const JEMALLOC_OWN: &[&str] = &["mallocx", "rallocx", "xallocx", "dallocx", "sdallocx"];

static BY_NAME: LazyLock<HashMap<&'static str, Function>> = LazyLock::new(|| {
    let own = Function::ALL.iter().map(|function| (function.symbol(), *function));
    OTHER_NAMES.iter().copied().chain(own).collect()
});

/// The function that a symbol of this name is.
pub(super) fn function_of(name: &str) -> Option<Function> {
    BY_NAME.get(name).copied()
}

/// Whether `name` is the mangled name of an operator: nothing else is called so by chance.
pub(super) fn is_operator(name: &str) -> bool {
    ["_Zn", "_Zd", "__size_returning_new"].iter().any(|start| name.starts_with(start))
}

/// Whether the name is one of mimalloc's.
pub(super) fn is_mimalloc(name: &str) -> bool {
    name.starts_with("mi_")
}

/// Whether the name tells that there may be a jemalloc with a prefix.
pub(super) fn hints_at_jemalloc(name: &str) -> bool {
    JEMALLOC_OWN.iter().any(|own| name.ends_with(own))
}

/// The prefixes of the jemallocs among `names`; the empty one for a jemalloc without.
pub(super) fn jemalloc_prefixes<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut seen: BTreeMap<&str, HashSet<&str>> = BTreeMap::new();
    for name in names {
        for own in JEMALLOC_OWN {
            if let Some(prefix) = name.strip_suffix(own) {
                seen.entry(prefix).or_default().insert(own);
            }
        }
    }
    seen.into_iter().filter(|(_, own)| own.len() >= 2).map(|(prefix, _)| prefix.to_owned()).collect()
}

/// The function that a jemalloc with this prefix calls `name`.
pub(super) fn jemalloc_function(prefix: &str, name: &str) -> Option<Function> {
    let plain = name.strip_prefix(prefix)?;
    JEMALLOC.iter().find(|(own, _)| *own == plain).map(|(_, function)| *function)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_function_and_no_function_of_python_another_name() {
        let mut names: Vec<&str> = OTHER_NAMES.iter().map(|(name, _)| *name).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
        for function in Function::ALL {
            assert_eq!(function_of(function.symbol()), Some(*function));
        }
        assert_eq!(function_of("mi_zalloc_aligned"), Some(Malloc));
        assert_eq!(function_of("mi_heap_malloc"), None);
        assert_eq!(function_of("_ZnwmPv"), None, "placement new allocates nothing");
    }

    #[test]
    fn a_prefix_of_jemalloc_is_what_two_of_its_own_names_share() {
        assert!(jemalloc_prefixes(["je_mallocx"; 2].into_iter()).is_empty(), "one name in two tables");
        let rust = ["_rjem_mallocx", "_rjem_sdallocx", "_rjem_malloc", "malloc", "_rjem_je_arena_dalloc"];
        assert_eq!(jemalloc_prefixes(rust.into_iter()), ["_rjem_"]);
        assert_eq!(jemalloc_prefixes(["mallocx", "xallocx", "nallocx"].into_iter()), [""]);
        // Google's tcmalloc has sdallocx and nallocx alone.
        assert!(
            jemalloc_prefixes(["sdallocx", "nallocx", "TCMallocInternalSdallocx"].into_iter()).is_empty()
        );
        assert_eq!(jemalloc_function("_rjem_", "_rjem_free"), Some(Free));
        assert_eq!(jemalloc_function("_rjem_", "_rjem_je_free_default"), None);
        assert_eq!(jemalloc_function("_rjem_", "free"), None);
    }
}
