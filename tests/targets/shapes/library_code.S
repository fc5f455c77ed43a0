/* Functions without unwind information, as old assembly is. They are exported: by their names gdb finds where
 * they begin, and reads how they make their frames. */
    .text

#define FUNCTION(name) .globl name; .type name, @function; .balign 16; name:
#define END(name) .size name, . - name

/* Keeps a frame pointer. */
FUNCTION(library_without_cfi)
    pushq %rbp
    movq %rsp, %rbp
    pushq %rbx
    subq $24, %rsp
    call *%rdi
    addq $24, %rsp
    popq %rbx
    popq %rbp
    ret
END(library_without_cfi)

/* Keeps none. */
FUNCTION(library_without_anything)
    subq $24, %rsp
    call *%rdi
    addq $24, %rsp
    ret
END(library_without_anything)

/* Interrupted while the frame pointer is its own. */
FUNCTION(library_fault_without_cfi)
    pushq %rbp
    movq %rsp, %rbp
    subq $32, %rsp
    ud2
    leave
    ret
END(library_fault_without_cfi)

    .section .note.GNU-stack, "", @progbits
