//! Where the running kernel keeps what the walk needs of a thread, by its BTF.
//!
//! aya 0.14 reads BTF, but shows no members of structures; programs in Rust cannot be relocated by it.

use std::collections::HashMap;
use std::fs;
use std::sync::OnceLock;

use tracer_common::config::TaskLayout;

/// Where the kernel shows its types.
const KERNEL_TYPES: &str = "/sys/kernel/btf/vmlinux";

/// Kinds of types, `include/uapi/linux/btf.h` of Linux 6.1.
mod kind {
    pub const INT: u32 = 1;
    pub const ARRAY: u32 = 3;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const FUNC_PROTO: u32 = 13;
    pub const VAR: u32 = 14;
    pub const DATASEC: u32 = 15;
    pub const DECL_TAG: u32 = 17;
    pub const ENUM64: u32 = 19;
}

/// The offsets of the running kernel; 0 where they cannot be found, which is said in the log.
pub fn read() -> TaskLayout {
    static LAYOUT: OnceLock<TaskLayout> = OnceLock::new();
    *LAYOUT.get_or_init(read_anew)
}

fn read_anew() -> TaskLayout {
    let types = fs::read(KERNEL_TYPES)
        .inspect_err(|error| log::info!("{KERNEL_TYPES}: {error}: no Python frames"))
        .unwrap_or_default();
    layout(&types).unwrap_or_default()
}

fn layout(types: &[u8]) -> Option<TaskLayout> {
    let structs = Structs::read(types, &["task_struct", "thread_struct", "uprobe_task", "return_instance"])?;
    let at = |name: &str, member: &str| structs.offset(name, member).unwrap_or(0);
    let thread = structs.offset("task_struct", "thread");
    let fs_base = structs.offset("thread_struct", "fsbase").zip(thread);
    Some(TaskLayout {
        fs_base: fs_base.map_or(0, |(in_thread, thread)| thread + in_thread),
        flags: at("task_struct", "flags"),
        pagefault_disabled: at("task_struct", "pagefault_disabled"),
        utask: at("task_struct", "utask"),
        return_instances: at("uprobe_task", "return_instances"),
        instance_stack: at("return_instance", "stack"),
        instance_return_addr: at("return_instance", "orig_ret_vaddr"),
        instance_next: at("return_instance", "next"),
    })
}

/// The wanted structures: offset in bytes by name of the structure and of the member.
struct Structs<'a>(HashMap<(&'a str, &'a str), u64>);

impl<'a> Structs<'a> {
    fn offset(&self, name: &str, member: &str) -> Option<u64> {
        self.0.get(&(name, member)).copied()
    }

    /// Goes once through all types. `None` where the bytes are no BTF.
    fn read(btf: &'a [u8], wanted: &[&str]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_le_bytes(*btf.get(at..)?.first_chunk()?));
        if word(0)? & 0xffff != 0xeb9f {
            return None;
        }
        let header = word(4)? as usize;
        let (types_at, types_bytes) = (word(8)? as usize + header, word(12)? as usize);
        let texts = btf.get((word(16)? as usize).checked_add(header)?..)?;
        let text = |at: u32| {
            let text = texts.get(at as usize..)?;
            let end = text.iter().position(|byte| *byte == 0)?;
            std::str::from_utf8(&text[..end]).ok()
        };
        let mut members = HashMap::new();
        let mut at = types_at;
        while at < types_at + types_bytes {
            let (name, info) = (word(at)?, word(at + 4)?);
            let (count, kind) = ((info & 0xffff) as usize, info >> 24 & 0x1f);
            at += 12;
            if kind == kind::STRUCT
                && let Some(name) = text(name)
                && wanted.contains(&name)
            {
                for member in 0..count {
                    let (member_name, place) = (word(at + member * 12)?, word(at + member * 12 + 8)?);
                    // With bit fields in the structure, the upper byte is a field's width.
                    let bits = if info >> 31 != 0 { place & 0xff_ffff } else { place };
                    if let Some(member_name) = text(member_name) {
                        members.insert((name, member_name), u64::from(bits / 8));
                    }
                }
            }
            at += match kind {
                kind::INT | kind::VAR | kind::DECL_TAG => 4,
                kind::ARRAY => 12,
                kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => count * 12,
                kind::ENUM | kind::FUNC_PROTO => count * 8,
                _ => 0,
            };
        }
        Some(Self(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_says_where_things_are() {
        let layout = read();
        // A thread's part of the processor's state comes last in its structure.
        assert!(layout.fs_base > layout.utask && layout.utask > 0, "{layout:?}");
        // `next` and `func` come first since Linux 6.13; before, `func` and `stack`.
        let places = [layout.instance_stack, layout.instance_return_addr, layout.instance_next];
        assert!(places.iter().all(|place| *place < 128), "{layout:?}");
        assert!(places[0] != places[1] && places[1] != places[2], "{layout:?}");
    }

    #[test]
    fn what_is_no_btf_has_no_offsets() {
        assert_eq!(layout(&[]), None);
        assert_eq!(layout(&[0x9f, 0xeb, 1, 0]), None);
        assert_eq!(layout(&[7; 100]), None);
        let types = fs::read(KERNEL_TYPES).unwrap();
        for cut in [10, 23, 24, 100, types.len() / 2] {
            let _ = layout(&types[..cut]);
        }
    }
}
