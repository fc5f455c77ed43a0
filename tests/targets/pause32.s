# A 32-bit process that says "ready" and waits to be killed. No C library: 32-bit ones are rarely installed.
        .data
ready:  .ascii  "ready\n"
        .text
        .globl  _start
_start: movl    $4, %eax        # write(1, ready, 6)
        movl    $1, %ebx
        movl    $ready, %ecx
        movl    $6, %edx
        int     $0x80
wait:   movl    $29, %eax       # pause()
        int     $0x80
        jmp     wait
