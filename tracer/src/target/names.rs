//! The names under which allocators offer the functions that are probed.
//!
//! A name stands under a [`Function`] when its arguments have the same places: all that a probe knows of a
//! call is which argument is the size, and which the old block. Functions that take a heap first
//! (`mi_heap_malloc`, `moz_arena_malloc`, `je_arena_…`) have their old block in argument 1 and are in no
//! list: half of such a family would give false rows. Nor are those of several sizes that may throw
//! (`mi_new_n`), for which there is no function.

use std::collections::{HashMap, HashSet};
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

/// Those of jemalloc's functions that no other library has, and what else it has in every build. Functions
/// called `leak_mallocx` and `leak_rallocx` make no jemalloc: two of the first with the same prefix and one
/// of the others are.
const JEMALLOC_OWN: &[&str] = &["mallocx", "rallocx", "xallocx", "dallocx", "sdallocx"];
const JEMALLOC_SIGNS: &[&str] = &["mallctl", "malloc_conf", "malloc_message"];

/// What mimalloc has in every build: the first is exported, the second shows in full symbol tables.
const MIMALLOC_SIGNS: &[&str] = &["mi_version", "_mi_os_init"];

static BY_NAME: LazyLock<HashMap<&'static str, Function>> = LazyLock::new(|| {
    let own = Function::ALL.iter().map(|function| (function.symbol(), *function));
    OTHER_NAMES.iter().copied().chain(own).collect()
});

/// The function that a symbol of this name is, in a file with the allocators of the standard names or of
/// this one.
pub(super) fn function_of(name: &str) -> Option<Function> {
    BY_NAME.get(name).copied()
}

/// Whether `name` is the mangled name of an operator: nothing else is called so by chance.
pub(super) fn is_operator(name: &str) -> bool {
    ["_Zn", "_Zd", "__size_returning_new"].iter().any(|start| name.starts_with(start))
}

/// Whether the name has something to tell of [`Families`].
pub(super) fn is_sign(name: &str) -> bool {
    MIMALLOC_SIGNS.contains(&name) || JEMALLOC_OWN.iter().chain(JEMALLOC_SIGNS).any(|own| name.ends_with(own))
}

/// The allocators with names of their own that are in a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Families {
    /// The prefixes of the jemallocs; the empty one for a jemalloc without.
    jemalloc: Vec<String>,
    mimalloc: bool,
    tcmalloc: bool,
}

impl Families {
    /// The families of which there are signs among the `names` of a file.
    pub(super) fn new<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let names: HashSet<&str> = names.collect();
        let mut prefixes: Vec<&str> = Vec::new();
        for (name, sign) in names.iter().flat_map(|name| JEMALLOC_SIGNS.iter().map(move |sign| (name, sign)))
        {
            let Some(prefix) = name.strip_suffix(sign) else { continue };
            let own = JEMALLOC_OWN.iter().filter(|own| names.contains(format!("{prefix}{own}").as_str()));
            if own.count() >= 2 && !prefixes.contains(&prefix) {
                prefixes.push(prefix);
            }
        }
        prefixes.sort_unstable();
        Self {
            jemalloc: prefixes.into_iter().map(str::to_owned).collect(),
            mimalloc: names.contains("mi_free") && MIMALLOC_SIGNS.iter().any(|sign| names.contains(sign)),
            tcmalloc: names.contains("TCMallocInternalMalloc")
                || (names.contains("tc_malloc") && names.contains("tc_free")),
        }
    }

    /// What reports call them.
    pub(super) fn allocators(&self) -> impl Iterator<Item = &'static str> {
        let found = [
            (!self.jemalloc.is_empty(), "jemalloc"),
            (self.tcmalloc, "tcmalloc"),
            (self.mimalloc, "mimalloc"),
        ];
        found.into_iter().filter(|(is_there, _)| *is_there).map(|(_, name)| name)
    }

    /// Whether there is a jemalloc whose plainer names are not among those of [`function_of`].
    pub(super) fn has_prefix(&self) -> bool {
        self.jemalloc.iter().any(|prefix| !prefix.is_empty())
    }

    /// The function that a symbol of this name is in that file.
    pub(super) fn function_of(&self, name: &str) -> Option<Function> {
        let is_foreign =
            (name.starts_with("mi_") && !self.mimalloc) || (name.starts_with("tc_") && !self.tcmalloc);
        function_of(name).filter(|_| !is_foreign).or_else(|| self.own_function_of(name))
    }

    /// The same for the names that tell their family: a function of this name counts even where it is
    /// visible in its own source file only, as in a library that exports nothing of the allocator in it.
    pub(super) fn own_function_of(&self, name: &str) -> Option<Function> {
        if self.mimalloc && name.starts_with("mi_") {
            return function_of(name);
        }
        let prefixes = self.jemalloc.iter().filter(|prefix| !prefix.is_empty());
        prefixes
            .filter_map(|prefix| name.strip_prefix(prefix.as_str()))
            .find_map(|plain| JEMALLOC.iter().find(|(own, _)| *own == plain).map(|(_, function)| *function))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_function() {
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

    fn families(names: &[&str]) -> Families {
        Families::new(names.iter().copied())
    }

    #[test]
    fn a_prefix_of_jemalloc_is_what_its_own_names_share() {
        let rust = families(&["_rjem_mallocx", "_rjem_sdallocx", "_rjem_mallctl", "malloc", "mallctl"]);
        assert_eq!(rust.jemalloc, ["_rjem_"]);
        assert_eq!(rust.function_of("_rjem_free"), Some(Free));
        assert_eq!(rust.own_function_of("free"), None);
        assert_eq!(rust.function_of("_rjem_je_free_default"), None);
        assert_eq!(families(&["mallocx", "xallocx", "malloc_conf"]).jemalloc, [""]);
        assert!(families(&["leak_mallocx", "leak_rallocx", "leak_xallocx"]).jemalloc.is_empty());
        // Google's tcmalloc has sdallocx and nallocx alone.
        let google = families(&["sdallocx", "nallocx", "TCMallocInternalMalloc", "mallctl"]);
        assert_eq!(google.allocators().collect::<Vec<_>>(), ["tcmalloc"]);
    }

    #[test]
    fn names_of_a_family_that_is_not_there_mean_nothing() {
        assert_eq!(families(&["mi_free", "tc_new"]), Families::default());
        assert_eq!(Families::default().function_of("mi_free"), None);
        assert_eq!(Families::default().function_of("tc_new"), None);
        assert_eq!(Families::default().function_of("free"), Some(Free));
        let both = families(&["mi_free", "_mi_os_init", "tc_malloc", "tc_free"]);
        assert_eq!(both.allocators().collect::<Vec<_>>(), ["tcmalloc", "mimalloc"]);
        assert_eq!(both.own_function_of("mi_new"), Some(OperatorNew));
    }
}
