//! One counter for every way in which the kernel side can lose something.

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal,)+) => {
        /// A way to lose something. The value is the index in the `COUNTERS` map.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Counter { $($(#[doc = $doc])+ $name,)+ }

        impl Counter {
            /// Every counter, in index order.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The name used in `loss.detail` of the JSON report.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)+ }
            }
        }
    };
}

counters! {
    /// An allocation was not sent: the ring buffer was full.
    AllocationLost = "allocations_lost",
    /// A free was not sent: the ring buffer was full. The block that it may have been is marked unsure.
    FreeLost = "frees_lost",
    /// The begin or end of a realloc, mremap or munmap was not sent: the ring buffer was full.
    ReplaceLost = "replaces_lost",
    /// A new stack was not sent: the ring buffer was full. Its allocation was sent without a stack.
    StackLost = "stacks_lost",
    /// The map of distinct stacks was full. The allocation was sent without a stack.
    StackMapFull = "stack_map_full",
    /// The map of threads was full. The call was not traced.
    ThreadMapFull = "thread_map_full",
    /// A call was entered whose return was never seen (`longjmp`, return probes nested too deep).
    ReturnLost = "returns_lost",
    /// The target's memory could not be read: the out-parameter of `posix_memalign`.
    ReadFailed = "reads_failed",
    /// A page fault was not sent: the ring buffer was full.
    PageFaultLost = "page_faults_lost",
}
