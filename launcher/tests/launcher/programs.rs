//! Programs made for the purpose, in the guest that is built in: ordinary C, and all that can go wrong with it.

use crate::bundled_guest::{built, session_with};
use std::path::Path;
use std::process::{Command, Output};

/// A static 32-bit program, and a folder for it and its initrd.
fn compile(source: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("t.c"), source).unwrap();
    let compiled = Command::new("gcc")
        .args(["-m32", "-static", "-O1", "-w", "-o", "t", "t.c", "-lm"])
        .current_dir(&folder)
        .status()
        .unwrap();
    assert!(compiled.success());
    folder
}

/// Packs files of a folder into its `initrd.cpio`, as they are.
fn pack(folder: &Path, names: &[&str]) {
    let packed = Command::new("sh")
        .args([
            "-c",
            "for name; do echo \"$name\"; done | cpio --quiet --create --format=newc >initrd.cpio",
            "sh",
        ])
        .args(names)
        .current_dir(folder)
        .status()
        .unwrap();
    assert!(packed.success());
}

/// Runs a script in a guest that has the program as `t`.
fn run(source: &str, script: &str) -> (Output, String) {
    let folder = compile(source);
    pack(folder.path(), &["t"]);
    let output = session_with(&folder.path().join("initrd.cpio"), script);
    let screen = String::from_utf8_lossy(&output.stdout).into_owned();
    (output, screen)
}

/// The same source, run by the guest and by the host.
#[test]
fn an_ordinary_program_says_what_it_says_on_the_host() {
    const SOURCE: &str = r#"
        #include <stdio.h>
        #include <stdlib.h>
        #include <string.h>
        #include <errno.h>
        #include <math.h>
        #include <signal.h>
        #include <unistd.h>
        #include <sys/mman.h>
        static __thread int counter = 42;
        static __thread char zeros[5000];
        static int compare(const void *a, const void *b) { return (*(int *)a > *(int *)b) - (*(int *)a < *(int *)b); }
        int main(int count, char **words) {
            int *numbers = malloc(200000 * sizeof(int));
            unsigned seed = 1, sum = 0;
            for (int i = 0; i < 200000; i++) numbers[i] = (seed = seed * 1103515245 + 12345) >> 1;
            qsort(numbers, 200000, sizeof(int), compare);
            for (int i = 0; i < 200000; i++) sum = sum * 31 + numbers[i];
            printf("%d %d %d %u\n", count, counter++, counter + zeros[4999], sum);
            char *large = realloc(malloc(200000), 3000000);
            memset(large, 1, 3000000);
            large = realloc(large, 9000000);
            printf("%d %.17g %.17Lg %a\n", large[2999999], sin(1.0), expl(1.0L), 1 / 3.0);
            char *page = mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            int answers[3] = { read(0, page, 1), write(1, (void *)8, 1), write(1, (void *)0xffffe000, 1) };
            printf("%d %d %d %s\n", answers[0], answers[1], answers[2], strerror(errno));
            struct sigaction before;
            sigset_t held;
            memset(&before, 7, sizeof before);
            memset(&held, 7, sizeof held);
            sigaction(SIGUSR1, 0, &before);
            sigprocmask(SIG_BLOCK, 0, &held);
            printf("%d %d\n", before.sa_handler == SIG_DFL, sigismember(&held, SIGUSR1));
            for (int i = 0; i < 3000; i++) {
                char *one = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
                if (one == MAP_FAILED) { puts("no more mappings"); break; }
                *one = 1;
            }
            printf("%d %d\n", kill(getpid(), 0), kill(0, 0));
            return 3;
        }"#;
    let folder = compile(SOURCE);
    pack(folder.path(), &["t"]);
    let typed = std::process::Stdio::from(std::fs::File::open(folder.path().join("t")).unwrap());
    let host = Command::new(folder.path().join("t")).stdin(typed).output().unwrap();
    assert_eq!(host.status.code(), Some(3));
    // One line for the program to fail to read.
    let output = session_with(&folder.path().join("initrd.cpio"), "t\n\npoweroff\n");
    let screen = String::from_utf8_lossy(&output.stdout).into_owned();
    for line in String::from_utf8(host.stdout).unwrap().lines() {
        assert!(screen.contains(&format!("\n{line}\n")), "{line:?} isn't in {screen}");
    }
    assert!(screen.contains("[2] ended with status 3\n"), "{screen}");
}

#[test]
fn each_mistake_ends_the_program_by_its_signal_and_nothing_else() {
    const SOURCE: &str = r#"
        int main(int count, char **words) {
            switch (words[1][0]) {
            case 'a': __asm__("xor %ecx, %ecx; div %ecx");
            case 'b': *(volatile int *)8 = 1;
            case 'c': return *(volatile int *)0xc0100000;
            case 'd': ((void (*)(void))0xc0100000)();
            case 'e': __asm__("ud2");
            case 'f': __asm__("int3");
            case 'g': __asm__("hlt");
            case 'h': __asm__("mov $2, %eax; int $0x1f");
            case 'i': __asm__("int $14");
            case 'j': __asm__("pushf; orl $0x100, (%esp); popf; nop; nop");
            case 'k': __asm__("mov $0xd0000000, %esp; push %eax");
            case 'l': main(count, words); return words[0][0];
            case 'm': __asm__("xor %eax, %eax; mov %eax, %ds; mov $20, %eax; int $0x80; mov (8), %eax");
            case 'n': __asm__("xor %eax, %eax; mov %eax, %ss");
            }
        }"#;
    let signals = [8, 11, 11, 11, 4, 5, 11, 11, 11, 5, 11, 11, 11, 11];
    let script: String = ('a'..='n').map(|mistake| format!("t {mistake}\n")).collect();
    let (output, screen) = run(SOURCE, &format!("{script}echo survived\npoweroff\n"));
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    for (pid, signal) in (2..).zip(signals) {
        let said = format!("[{pid}] ended by signal {signal}\n");
        assert!(screen.contains(&said), "{said:?} isn't in {screen}");
    }
    assert!(screen.contains("\nsurvived\n"), "{screen}");
}

/// One process takes all memory, to the last page, and sleeps. Then it's the others who want some.
#[test]
fn whoever_has_most_memory_ends_when_it_runs_out() {
    const SOURCE: &str = r#"
        #include <stdio.h>
        #include <string.h>
        #include <sys/mman.h>
        #include <sys/sysinfo.h>
        #include <unistd.h>
        int main(int count, char **words) {
            struct sysinfo now;
            if (count > 1 && words[1][0] == 'w') {
                do usleep(1000); while (sysinfo(&now) == 0 && now.freeram > 16);
                return 8;
            }
            if (count > 1) {
                char *memory = mmap(0, 8 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
                memset(memory, 1, 8 << 20);
                return 7;
            }
            for (;;) {
                sysinfo(&now);
                if (now.freeram < 4) {
                    usleep(1000);
                    continue;
                }
                unsigned bytes = now.freeram > 1000 ? 256 * 4096 : 4096;
                memset(mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 1, bytes);
            }
        }"#;
    let line = format!("echo {}", "long ".repeat(3000));
    let script = format!("t &\nt wait\n{line}\nt small\npoweroff\n");
    let (output, screen) = run(SOURCE, &script);
    assert_eq!(output.status.code(), Some(0), "{:?} {screen}", output.stderr);
    assert_eq!(screen.matches("t [2]: killed, memory has run out\n").count(), 1, "{screen}");
    assert_eq!(screen.matches("killed, memory has run out\n").count(), 1, "{screen}");
    assert!(screen.contains("ended with status 8\n"), "{screen}");
    assert!(screen.contains("ended with status 7\n"), "{screen}");
}

#[test]
fn a_call_that_is_not_there_is_named_once() {
    const SOURCE: &str = r#"
        #include <stdio.h>
        #include <unistd.h>
        int main(void) { return syscall(11) == -1 && syscall(500) == -1 ? 5 : 6; }"#;
    let (_, screen) = run(SOURCE, "t\nt\npoweroff\n");
    assert_eq!(screen.matches("no system call 11\n").count(), 1, "{screen}");
    assert_eq!(screen.matches("ended with status 5\n").count(), 2, "{screen}");
}

#[test]
fn a_shell_in_the_shell_gives_the_keyboard_back() {
    let script = "shell\necho inside\nshell\nfpu\necho deeper\n";
    let output = session_with(&built("initrd.cpio"), script);
    let screen = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(screen.contains("\ninside\n") && screen.contains("\ndeeper\n"), "{screen}");
}

#[test]
fn an_initrd_that_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let initrd = folder.path().join("initrd");
    let whole = std::fs::read(built("initrd.cpio")).unwrap();
    let gzip = [b"\x1f\x8b\x08".as_slice(), &whole[..1000]].concat();
    for (bytes, says) in [
        (&gzip[..], "it is compressed by gzip"),
        (&whole[..100_000], "it is damaged or cut off at byte "),
        (&whole[..50], "it is damaged or cut off at byte 0"),
        (&[0xaa; 9999], "it isn't a cpio archive"),
    ] {
        std::fs::write(&initrd, bytes).unwrap();
        let output = session_with(&initrd, "busybox echo x\necho on\npoweroff\n");
        let screen = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(screen.contains(says) && screen.contains("\non\n"), "{screen}");
    }
}

#[test]
fn programs_are_found_by_links_on_the_way_and_by_all_their_names() {
    let folder =
        compile("#include <stdio.h>\nint main(int n, char **words) { puts(words[0]); return 9; }");
    let path = folder.path();
    std::fs::create_dir_all(path.join("usr/bin")).unwrap();
    std::fs::hard_link(path.join("t"), path.join("usr/bin/one")).unwrap();
    std::fs::hard_link(path.join("t"), path.join("usr/bin/two")).unwrap();
    std::os::unix::fs::symlink("usr/bin", path.join("bin")).unwrap();
    pack(path, &["bin", "usr", "usr/bin", "usr/bin/one", "usr/bin/two", "t"]);
    let script = "bin/one\n/bin/two\nusr/../bin/./one\npoweroff\n";
    let output = session_with(&path.join("initrd.cpio"), script);
    let screen = String::from_utf8_lossy(&output.stdout);
    assert_eq!(screen.matches("ended with status 9\n").count(), 3, "{screen}");
}
