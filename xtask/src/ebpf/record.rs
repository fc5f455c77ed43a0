//! What is recorded beside the shipped object, and whether the object is stale by it.

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::toolchain::Versions;

/// The JSON file beside the object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    rustc: String,
    llvm: String,
    bpf_linker: String,
    sources_sha256: String,
    /// SHA-256 of the object's bytes, in hex.
    pub object_sha256: String,
}

/// How the shipped object stands to the one just built.
#[derive(Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Same toolchain, same bytes.
    SameBytes,
    /// Another toolchain, whose bytes may differ; the sources are those of the shipped object.
    SameSources,
    /// The shipped object is not what the sources say, for this reason.
    Stale(String),
}

impl Record {
    /// Of an object built by these versions from sources with this digest.
    pub fn new(versions: &Versions, sources_sha256: &str, object: &[u8]) -> Self {
        Self {
            rustc: versions.rustc.clone(),
            llvm: versions.llvm.clone(),
            bpf_linker: versions.bpf_linker.clone(),
            sources_sha256: sources_sha256.to_owned(),
            object_sha256: hex_sha256(object),
        }
    }

    /// Reads the JSON. Fails when a field is missing.
    pub fn parse(json: &str) -> Result<Self> {
        serde_json::from_str(json).context("not the record of an eBPF object")
    }

    /// The JSON, ending with a line feed.
    pub fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self).context("write the record as JSON")? + "\n")
    }

    /// The toolchain that built the object.
    pub fn toolchain(&self) -> Versions {
        Versions { rustc: self.rustc.clone(), llvm: self.llvm.clone(), bpf_linker: self.bpf_linker.clone() }
    }
}

impl Freshness {
    /// Compares the record and bytes in the tree with the record and bytes just built.
    pub fn of(recorded: &Record, built: &Record, shipped_object: &[u8], built_object: &[u8]) -> Self {
        if hex_sha256(shipped_object) != recorded.object_sha256 {
            Self::Stale("its bytes are not those recorded beside it".into())
        } else if recorded.sources_sha256 != built.sources_sha256 {
            Self::Stale("the sources have changed since it was built".into())
        } else if recorded.toolchain() != built.toolchain() {
            Self::SameSources
        } else if shipped_object != built_object {
            Self::Stale(format!(
                "the same sources and toolchain give other bytes here ({} bytes instead of {})",
                built_object.len(),
                shipped_object.len()
            ))
        } else {
            Self::SameBytes
        }
    }
}

/// SHA-256 in lower-case hex.
pub fn hex_sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn versions(rustc: &str) -> Versions {
        Versions { rustc: rustc.into(), llvm: "22.1.8".into(), bpf_linker: "bpf-linker 0.13.0".into() }
    }

    #[test]
    fn digests_are_sha256() {
        // NIST's example for SHA-256 of "abc", FIPS 180-2 appendix B.1.
        assert_eq!(hex_sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn a_record_survives_its_json() {
        let record = Record::new(&versions("rustc 1.96.0"), "aa", b"object");
        assert_eq!(Record::parse(&record.to_json().expect("json")).expect("a record"), record);
        assert!(Record::parse("{}").is_err());
    }

    #[test]
    fn each_kind_of_staleness_is_told_apart() {
        let shipped = Record::new(&versions("rustc 1.96.0"), "aa", b"object");
        let of = |versions: &Versions, sources: &str, object: &[u8]| {
            Freshness::of(&shipped, &Record::new(versions, sources, object), b"object", object)
        };
        assert_eq!(of(&versions("rustc 1.96.0"), "aa", b"object"), Freshness::SameBytes);
        assert_eq!(of(&versions("rustc 1.97.0"), "aa", b"other"), Freshness::SameSources);
        let stale = |freshness| matches!(freshness, Freshness::Stale(_));
        assert!(stale(of(&versions("rustc 1.96.0"), "aa", b"other")));
        assert!(stale(of(&versions("rustc 1.96.0"), "bb", b"object")));
        assert!(stale(of(&versions("rustc 1.97.0"), "bb", b"other")));
        let built = Record::new(&versions("rustc 1.96.0"), "aa", b"object");
        assert!(stale(Freshness::of(&shipped, &built, b"edited", b"object")), "edited in the tree");
    }
}
