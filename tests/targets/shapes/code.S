/* Functions that no compiler makes, and the instructions at which signals interrupt. */
    .text

#define FUNCTION(name) .globl name; .hidden name; .type name, @function; .balign 16; name: .cfi_startproc
#define END(name) .cfi_endproc; .size name, . - name

/* Ends with a frame of 128 bytes. What follows has none, and begins with the byte after. */
    .balign 16
    .type before_first, @function
before_first:
    .cfi_startproc
    subq $120, %rsp
    .cfi_adjust_cfa_offset 120
    nop
    nop
    .fill 8, 1, 0x90
    ud2
    .cfi_endproc
    .size before_first, . - before_first

    .globl illegal_at_first
    .hidden illegal_at_first
    .type illegal_at_first, @function
illegal_at_first:
    .cfi_startproc
    ud2
    ret
END(illegal_at_first)

FUNCTION(illegal_in_prologue)
    pushq %rbp
    .cfi_def_cfa_offset 16
    .cfi_offset %rbp, -16
    ud2
    movq %rsp, %rbp
    .cfi_def_cfa_register %rbp
    popq %rbp
    .cfi_def_cfa %rsp, 8
    ret
END(illegal_in_prologue)

FUNCTION(illegal_in_body)
    pushq %rbx
    .cfi_def_cfa_offset 16
    .cfi_offset %rbx, -16
    subq $64, %rsp
    .cfi_def_cfa_offset 80
    ud2
    addq $64, %rsp
    .cfi_def_cfa_offset 16
    popq %rbx
    .cfi_def_cfa_offset 8
    ret
END(illegal_in_body)

FUNCTION(illegal_in_epilogue)
    pushq %rbp
    .cfi_def_cfa_offset 16
    .cfi_offset %rbp, -16
    movq %rsp, %rbp
    .cfi_def_cfa_register %rbp
    pushq %rbx
    .cfi_offset %rbx, -24
    andq $-64, %rsp
    subq $192, %rsp
    leaq -8(%rbp), %rsp
    popq %rbx
    ud2
    popq %rbp
    .cfi_def_cfa %rsp, 8
    ret
END(illegal_in_epilogue)

FUNCTION(illegal_at_return)
    pushq %rbp
    .cfi_def_cfa_offset 16
    .cfi_offset %rbp, -16
    movq %rsp, %rbp
    .cfi_def_cfa_register %rbp
    leave
    .cfi_def_cfa %rsp, 8
    ud2
    ret
END(illegal_at_return)

/* Keeps what looks like return addresses below the stack pointer, where the kernel's frame must not lie. */
FUNCTION(fault_in_red_zone)
    movq (%rsp), %rax
    movq %rax, -8(%rsp)
    movq %rax, -128(%rsp)
    xorl %eax, %eax
    movl (%rax), %eax
    movq (%rsp), %rax
    cmpq %rax, -8(%rsp)
    jne 1f
    cmpq %rax, -128(%rsp)
    jne 1f
    ret
1:  ud2
    jmp 1b
END(fault_in_red_zone)

FUNCTION(divide_by_zero)
    subq $24, %rsp
    .cfi_def_cfa_offset 32
    xorl %ecx, %ecx
    xorl %edx, %edx
    movl $1, %eax
    divl %ecx
    addq $24, %rsp
    .cfi_def_cfa_offset 8
    ret
END(divide_by_zero)

/* Says that it spins, and spins on one instruction until a handler moves it on. */
FUNCTION(spin)
    pushq %r12
    .cfi_def_cfa_offset 16
    .cfi_offset %r12, -16
    movl $1, (%rdi)
1:  jmp 1b
    popq %r12
    .cfi_def_cfa_offset 8
    ret
END(spin)

/* The frame is found by a register that is neither the stack pointer nor the frame pointer. */
FUNCTION(shape_frame_in_rbx)
    pushq %rbx
    .cfi_def_cfa_offset 16
    .cfi_offset %rbx, -16
    movq %rsp, %rbx
    .cfi_def_cfa_register %rbx
    andq $-64, %rsp
    subq $256, %rsp
    call follow
    movq %rbx, %rsp
    .cfi_def_cfa_register %rsp
    popq %rbx
    .cfi_def_cfa_offset 8
    ret
END(shape_frame_in_rbx)

/* The caller's rbp is kept in a register; rbp holds the place of an older frame. */
FUNCTION(shape_rbp_in_r12)
    pushq %r12
    .cfi_def_cfa_offset 16
    .cfi_offset %r12, -16
    movq %rbp, %r12
    .cfi_register %rbp, %r12
    leaq 64(%rsp), %rbp
    subq $16, %rsp
    .cfi_def_cfa_offset 32
    call follow
    addq $16, %rsp
    .cfi_def_cfa_offset 16
    movq %r12, %rbp
    .cfi_restore %rbp
    popq %r12
    .cfi_def_cfa_offset 8
    ret
END(shape_rbp_in_r12)

/* The frame is found through memory: DW_CFA_def_cfa_expression { DW_OP_breg7 16; DW_OP_deref }, as compilers
 * write it for a function that keeps its DRAP on the stack. */
FUNCTION(shape_frame_in_memory)
    leaq 8(%rsp), %rax
    subq $40, %rsp
    .cfi_def_cfa_offset 48
    movq %rax, 16(%rsp)
    .cfi_escape 0x0f, 0x03, 0x77, 0x10, 0x06
    call follow
    .cfi_def_cfa %rsp, 48
    addq $40, %rsp
    .cfi_def_cfa_offset 8
    ret
END(shape_frame_in_memory)

/* rbp is kept at a place found by an expression: DW_CFA_expression rbp { DW_OP_breg7 8 }. */
FUNCTION(shape_rbp_by_expression)
    subq $24, %rsp
    .cfi_def_cfa_offset 32
    movq %rbp, 8(%rsp)
    .cfi_escape 0x10, 0x06, 0x02, 0x77, 0x08
    leaq 24(%rsp), %rbp
    call follow
    movq 8(%rsp), %rbp
    .cfi_restore %rbp
    addq $24, %rsp
    .cfi_def_cfa_offset 8
    ret
END(shape_rbp_by_expression)

/* The way back is not where a call leaves it: the return address is moved up the stack. */
FUNCTION(shape_return_moved)
    popq %rax
    .cfi_def_cfa_offset 0
    .cfi_register %rip, %rax
    subq $48, %rsp
    .cfi_def_cfa_offset 48
    movq %rax, 8(%rsp)
    .cfi_offset %rip, -40
    call follow
    movq 8(%rsp), %rax
    addq $48, %rsp
    .cfi_def_cfa_offset 0
    jmp *%rax
END(shape_return_moved)

/* Calls a function with the trap flag set. */
FUNCTION(step_through)
    pushq %rbx
    .cfi_def_cfa_offset 16
    .cfi_offset %rbx, -16
    pushfq
    .cfi_adjust_cfa_offset 8
    orl $0x100, (%rsp)
    popfq
    .cfi_adjust_cfa_offset -8
    call *%rdi
    pushfq
    .cfi_adjust_cfa_offset 8
    andl $~0x100, (%rsp)
    popfq
    .cfi_adjust_cfa_offset -8
    popq %rbx
    .cfi_def_cfa_offset 8
    ret
END(step_through)
    .globl step_through_end
    .hidden step_through_end
step_through_end:

FUNCTION(call_answer)
    subq $8, %rsp
    .cfi_def_cfa_offset 16
    call library_answer@PLT
    .globl call_answer_distance
    .hidden call_answer_distance
    .set call_answer_distance, . - 4
    addq $8, %rsp
    .cfi_def_cfa_offset 8
    ret
END(call_answer)

    .section .note.GNU-stack, "", @progbits
