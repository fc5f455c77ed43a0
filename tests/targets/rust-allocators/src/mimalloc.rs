//! The plan under mimalloc.

mod plan;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    plan::serve();
}
