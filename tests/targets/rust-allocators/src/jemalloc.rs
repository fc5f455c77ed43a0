//! The plan under jemalloc, with the prefix that its crate gives it.

mod plan;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() {
    plan::serve();
}
