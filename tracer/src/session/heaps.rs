//! Whom to ask what has become of a target's blocks.

use crate::heap::glibc::GlibcHeap;
use crate::heap::{Allocator, HeapUnknown, Interpreter, PythonAllocators};
use crate::target::{ProcessMemory, Target};

/// The allocators of one target, found when they are first asked.
#[derive(Default)]
pub struct Heaps {
    interpreter: Option<Interpreter>,
    glibc: Option<GlibcHeap>,
}

impl Heaps {
    /// Its interpreter.
    pub fn interpreter(&mut self, target: &Target) -> Option<&Interpreter> {
        if self.interpreter.is_none() && target.cpython.is_some() {
            self.interpreter = known(Interpreter::open(target));
        }
        self.interpreter.as_ref()
    }

    /// What serves the requests for objects.
    pub fn pool_use(&mut self, target: &Target, memory: &ProcessMemory) -> PoolUse {
        let Some(interpreter) = self.interpreter(target) else { return PoolUse::Pymalloc };
        match known(PythonAllocators::read(interpreter, memory))
            .map(|served| served.object.innermost().clone())
        {
            Some(Allocator::Malloc) => PoolUse::Malloc,
            Some(Allocator::Mimalloc) => PoolUse::Mimalloc,
            _ => PoolUse::Pymalloc,
        }
    }

    /// The heap of its C library.
    pub fn glibc(&mut self, target: &Target) -> Option<&GlibcHeap> {
        if self.glibc.is_none() {
            self.glibc = GlibcHeap::locate(target).inspect_err(|error| log::info!("not asked: {error}")).ok();
        }
        self.glibc.as_ref()
    }
}

/// Whether CPython's pools are in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PoolUse {
    /// They are, as far as is known.
    #[default]
    Pymalloc,
    /// Everything is asked of the C library, and seen there.
    Malloc,
    /// CPython's own mimalloc serves, which is not traced.
    Mimalloc,
}

/// What could be found; why not goes to the log.
pub fn known<T>(looked: Result<T, HeapUnknown>) -> Option<T> {
    looked.inspect_err(|error| log::info!("not asked: {error}")).ok()
}
