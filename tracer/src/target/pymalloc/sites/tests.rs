//! Shapes that compilers have given to pops and pushes, as disassembled in the named builds.

use super::*;

/// The sites in `code`, which lies at 0x1000: event, distance, register, offset, whether it is read there.
fn found(code: &[u8]) -> Vec<(Event, u64, u8, u16, bool)> {
    let sections = [(0x1000, code)];
    let around = |_| Some(0x1000..0x1000 + code.len() as u64);
    let mut sites: Vec<_> = find(sections.into_iter(), around)
        .into_iter()
        .map(|site| (site.event, site.vaddr - 0x1000, site.register, site.offset, site.is_read))
        .collect();
    sites.sort_unstable();
    sites
}

const RAX: u8 = 0;
const RBX: u8 = 3;
const RSP: u8 = 4;
const R15: u8 = 15;

#[test]
fn a_pop_ends_with_a_look_at_what_is_left() {
    // Debian 12, 3.11:
    // mov 0x8(%rdx),%rax; addl $1,(%rdx); mov (%rax),%rcx; mov %rcx,0x8(%rdx); test %rcx,%rcx; je .+0x80
    let code = b"\x48\x8b\x42\x08\x83\x02\x01\x48\x8b\x08\x48\x89\x4a\x08\x48\x85\xc9\x74\x7e";
    assert_eq!(found(code), [(Event::Pop, 0x11, RAX, 0, false)]);
    // Counted in a register, and looked before the last store.
    // mov (%r9),%edi; add $1,%edi; mov 0x8(%r9),%r15; mov %edi,(%r9); mov (%r15),%rbx; test %rbx,%rbx; mov
    // %rbx,0x8(%r9); jne .+0x20
    let code = b"\x41\x8b\x39\x83\xc7\x01\x4d\x8b\x79\x08\x41\x89\x39\x49\x8b\x1f\x48\x85\xdb\x49\x89\x59\x08\x75\x1e";
    assert_eq!(found(code), [(Event::Pop, 0x17, R15, 0, false)]);
    // Debian 13, 3.13: the block is on the stack.
    // mov 0x8(%rax),%rdi; addl $1,(%rax); mov %rdi,0x18(%rsp); mov (%rdi),%rdi; mov %rdi,0x8(%rax); test
    // %rdi,%rdi; je .+0x80
    let code =
        b"\x48\x8b\x78\x08\x83\x00\x01\x48\x89\x7c\x24\x18\x48\x8b\x3f\x48\x89\x78\x08\x48\x85\xff\x74\x7e";
    assert_eq!(found(code), [(Event::Pop, 0x16, RSP, 0x18, true)]);
}

#[test]
fn a_push_ends_with_a_look_at_what_was_there() {
    // mov 0x8(%rdx),%rcx; mov %rcx,(%rbx); mov %rbx,0x8(%rdx); mov (%rdx),%eax; sub $1,%eax; mov
    // %eax,(%rdx); test %rcx,%rcx; je .+0x80
    let code =
        b"\x48\x8b\x4a\x08\x48\x89\x0b\x48\x89\x5a\x08\x8b\x02\x83\xe8\x01\x89\x02\x48\x85\xc9\x74\x7e";
    assert_eq!(found(code), [(Event::Push, 0x15, RBX, 0, false)]);
    // Debian 11, 3.9: the register is used again; the block is the head of the free list now.
    // mov 0x8(%rax),%r10; mov %r10,(%rdi); mov %rdi,0x8(%rax); mov (%rax),%edi; lea -0x1(%rdi),%r11d; mov
    // %r11d,(%rax); test %r10,%r10; je .+0x20
    let code = b"\x4c\x8b\x50\x08\x4c\x89\x17\x48\x89\x78\x08\x8b\x38\x44\x8d\x5f\xff\x44\x89\x18\x4d\x85\xd2\x74\x1e";
    assert_eq!(found(code), [(Event::Push, 0x17, RAX, 8, true)]);
    // The same, of an object behind the header of the garbage collector.
    // lea -0x10(%rbp),%rax; mov 0x8(%r9),%r12; mov %r12,-0x10(%rbp); mov (%r9),%ebp; mov %rax,0x8(%r9);
    // lea -0x1(%rbp),%esi; mov %esi,(%r9); test %r12,%r12; je .+0x20
    let code = b"\x48\x8d\x45\xf0\x4d\x8b\x61\x08\x4c\x89\x65\xf0\x41\x8b\x29\x49\x89\x41\x08\x8d\x75\xff\x41\x89\x31\x4d\x85\xe4\x74\x1e";
    assert_eq!(found(code), [(Event::Push, 0x1c, RAX, 0, false)]);
    // 3.8 counts behind the look.
    // mov 0x8(%rdx),%rax; mov %rax,(%rdi); mov %rdi,0x8(%rdx); test %rax,%rax; je .+0x80
    let code = b"\x48\x8b\x42\x08\x48\x89\x07\x48\x89\x7a\x08\x48\x85\xc0\x74\x7e";
    assert_eq!(found(code), [(Event::Push, 0xe, 7, 0, false)]);
}

#[test]
fn a_fresh_pool_and_a_reused_one_are_found_in_one_function() {
    // mov %ebp,0x24(%rax); add $1,%ebp; lea 0x30(%rax),%rbx; mov $0x4000,%ecx; mov %ebp,%edx; shl $5,%ebp;
    // shl $4,%edx; add $0x30,%ebp; sub %edx,%ecx; add %rbx,%rdx; mov %ebp,0x28(%rax); mov %ecx,0x2c(%rax);
    // mov %rdx,0x8(%rax); movq $0,(%rdx); mov %rbx,%rax; ret; mov 0x8(%rax),%rbx; mov (%rbx),%rdx; mov
    // %rdx,0x8(%rax); mov %rbx,%rax; ret
    let code = b"\x89\x68\x24\x83\xc5\x01\x48\x8d\x58\x30\xb9\x00\x40\x00\x00\x89\xea\xc1\xe5\x05\xc1\xe2\x04\x83\xc5\x30\x29\xd1\x48\x01\xda\x89\x68\x28\x89\x48\x2c\x48\x89\x50\x08\x48\xc7\x02\x00\x00\x00\x00\x48\x89\xd8\xc3\x48\x8b\x58\x08\x48\x8b\x13\x48\x89\x50\x08\x48\x89\xd8\xc3";
    let expected = [(Event::Fresh, 0x29, RAX, 48, false), (Event::Fresh, 0x3f, RBX, 0, false)];
    assert_eq!(found(code), expected);
    // Without a fresh pool in its function the other is nothing.
    assert_eq!(found(&code[0x34..]), []);
}

#[test]
fn what_only_looks_like_it_is_none() {
    // A list of something else: nothing is counted.
    // mov 0x8(%rdx),%rax; mov (%rax),%rcx; mov %rcx,0x8(%rdx); test %rcx,%rcx; je .+0x80
    let code = b"\x48\x8b\x42\x08\x48\x8b\x08\x48\x89\x4a\x08\x48\x85\xc9\x74\x7e";
    assert_eq!(found(code), []);
    // Memory may have changed in the call.
    // mov 0x8(%rdx),%rax; addl $1,(%rdx); call .+0x100; mov (%rax),%rcx; mov %rcx,0x8(%rdx); test
    // %rcx,%rcx; je .+0x80
    let code =
        b"\x48\x8b\x42\x08\x83\x02\x01\xe8\xfb\x00\x00\x00\x48\x8b\x08\x48\x89\x4a\x08\x48\x85\xc9\x74\x7e";
    assert_eq!(found(code), []);
    // The jump looks at something else.
    // mov 0x8(%rdx),%rax; addl $1,(%rdx); mov (%rax),%rcx; mov %rcx,0x8(%rdx); test %rcx,%rcx; add
    // $1,%esi; je .+0x80
    let code = b"\x48\x8b\x42\x08\x83\x02\x01\x48\x8b\x08\x48\x89\x4a\x08\x48\x85\xc9\x83\xc6\x01\x74\x7e";
    assert_eq!(found(code), []);
    // The block is not linked to the old head.
    // mov 0x8(%rdx),%rcx; mov %rbx,0x8(%rdx); subl $1,(%rdx); test %rcx,%rcx; je .+0x80
    let code = b"\x48\x8b\x4a\x08\x48\x89\x5a\x08\x83\x2a\x01\x48\x85\xc9\x74\x7e";
    assert_eq!(found(code), []);
    assert_eq!(found(&[]), []);
    assert_eq!(found(&[0x06; 40]), []);
}

#[test]
fn a_register_that_seemed_to_count_may_hold_a_block_on_another_way() {
    // mov (%rax),%ebx; a pop and its look; then a push of what is in %rbx, to which a jump leads.
    let mut code = b"\x8b\x18".to_vec();
    code.extend_from_slice(
        b"\x48\x8b\x4a\x08\x48\x89\x0b\x48\x89\x5a\x08\x8b\x02\x83\xe8\x01\x89\x02\x48\x85\xc9\x74\x7e",
    );
    assert_eq!(found(&code), [(Event::Push, 0x17, RBX, 0, false)]);
}

#[test]
fn a_block_that_was_popped_is_pushed_again() {
    // A pop into %rbx, then a push of it.
    let code = b"\x48\x8b\x58\x08\x83\x00\x01\x48\x8b\x0b\x48\x89\x48\x08\x48\x85\xc9\x74\x7e\
        \x48\x8b\x4a\x08\x48\x89\x0b\x48\x89\x5a\x08\x8b\x02\x83\xe8\x01\x89\x02\x48\x85\xc9\x74\x7e";
    assert_eq!(found(code), [(Event::Pop, 0x11, RBX, 0, false), (Event::Push, 0x28, RBX, 0, false)]);
}
