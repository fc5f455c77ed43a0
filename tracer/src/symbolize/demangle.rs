//! Names of C++ and Rust as their sources have them.
//!
//! Every name that is no mangled one is left alone. A demangler takes any text for what it might be: to that of C++, a
//! function of C that is called `f` is the type `float`, and `rd` is `double restrict` (blazesym 0.2.7 asks it so).

use std::borrow::Cow;

/// What mangled names begin with: those of C++ and Rust's older ones (Itanium C++ ABI, 5.1.2), and Rust's own (RFC 2603).
const PREFIXES: [&str; 2] = ["_Z", "_R"];

/// The name in the source, where `name` is mangled.
pub(super) fn demangle(name: &str) -> Cow<'_, str> {
    if !PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
        return name.into();
    }
    if let Ok(rust) = rustc_demangle::try_demangle(name) {
        return format!("{rust:#}").into();
    }
    let cpp = cpp_demangle::Symbol::new(name).ok().and_then(|symbol| symbol.demangle().ok());
    cpp.map_or(name.into(), Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mangled_names_are_those_of_the_source() {
        for (mangled, name) in [
            ("_Z8leak_newv", "leak_new()"),
            ("_ZN4shop3BoxIiE4fillEi", "shop::Box<int>::fill(int)"),
            ("_ZN5names4shop9leak_rust17h0123456789abcdefE", "names::shop::leak_rust"),
            ("_RNvNtCs1234_5names4shop9leak_rust", "names::shop::leak_rust"),
        ] {
            assert_eq!(demangle(mangled), name);
        }
    }

    #[test]
    fn other_names_are_left_alone() {
        // Types of C++, to its demangler; the last ones would be mangled names with another start, or are broken ones.
        let types = ["a", "c", "d", "f", "i", "l", "rd", "Pc", "Ss", "St", "v", "x", "Dn", "S_"];
        for name in types.into_iter().chain(["main", "_start", "", "ZN1a1bE", "RNvC1a1b", "_Zx!", "_R", "_Z"])
        {
            assert_eq!(demangle(name), name);
        }
    }
}
