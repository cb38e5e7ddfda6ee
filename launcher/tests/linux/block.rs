//! Disks: what a guest writes is in the image, and nothing else is.

use crate::Skip;
use crate::guest::{Guest, command};
use crate::kernel::Kernel;
use std::fs;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;
use std::process::{Command, Output};
use tempfile::{NamedTempFile, TempPath, tempdir};

const MIB: u64 = 1 << 20;

/// An image of so many bytes, all of them zero.
pub(crate) fn image(bytes: u64) -> TempPath {
    let image = NamedTempFile::new().unwrap();
    image.as_file().set_len(bytes).unwrap();
    image.into_temp_path()
}

/// A guest with this disk, which its kernel can use.
fn with_disk(kernel: &Kernel, disk: &str) -> Result<Guest, Skip> {
    let mut guest = Guest::boot(kernel, &["--disk", disk]);
    needs_disks(&mut guest)?;
    Ok(guest)
}

pub(crate) fn needs_disks(guest: &mut Guest) -> Result<(), Skip> {
    guest.needs("[ -b /dev/vda ]", "the kernel has no virtio disks")
}

/// Makes a file system of whichever kind the kernel has, mounted.
pub(crate) fn mount_new(guest: &mut Guest) -> Result<&'static str, Skip> {
    let known = guest.run("cat /proc/filesystems");
    // The fourth of the family knows the second's layout too.
    let mut kinds = ["ext2", "ext4"].into_iter();
    let kind = kinds.find(|&kind| known.lines().any(|line| line.trim() == kind));
    let kind = kind.ok_or_else(|| Skip("the kernel has neither ext2 nor ext4".to_owned()))?;
    guest.run("mke2fs /dev/vda");
    guest.run(&format!("mount -t {kind} /dev/vda /mnt"));
    Ok(kind)
}

/// What `seq` prints.
pub(crate) fn numbers(last: u32) -> Vec<u8> {
    (1..=last).flat_map(|number| format!("{number}\n").into_bytes()).collect()
}

/// Runs a tool of the host's if it is installed.
fn tool(name: &str, arguments: &[&str]) -> Option<Output> {
    match Command::new(name).args(arguments).env("PATH", path_with_sbin()).output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => panic!("{name}: {error}"),
    }
}

/// Where tools for file systems are, which not everybody looks into.
fn path_with_sbin() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

/// The file system in this image is whole, and `file` in it has these contents, as far as the host has tools to see that.
pub(crate) fn assert_whole(image: &Path, file: &str, contents: &[u8]) {
    let name = image.to_str().unwrap();
    if let Some(output) = tool("e2fsck", &["-fn", name]) {
        assert!(output.status.success(), "{output:?}");
    }
    let copies = tempdir().unwrap();
    let copy = copies.path().join("copy");
    let dump = format!("dump {file} {}", copy.display());
    if let Some(output) = tool("debugfs", &["-R", &dump, name]) {
        assert!(fs::read(&copy).unwrap() == contents, "{output:?}");
    }
}

pub(crate) fn a_file_system(kernel: &Kernel) -> Result<(), Skip> {
    let image = image(32 * MIB);
    let mut guest = with_disk(kernel, image.to_str().unwrap())?;
    let kind = mount_new(&mut guest)?;
    let sent = guest.run("seq 1 200000 > /mnt/numbers; md5sum < /mnt/numbers");
    guest.run(
        "mkdir /mnt/many; for n in $(seq 100); do echo $n > /mnt/many/$n; done; sync; umount /mnt",
    );
    guest.run(&format!("mount -t {kind} /dev/vda /mnt"));
    assert_eq!(guest.run("md5sum < /mnt/numbers"), sent);
    assert_eq!(guest.run("cat /mnt/many/*  | wc -l"), "100\n");
    guest.run("rm -r /mnt/many; umount /mnt");
    guest.power_off();
    assert_whole(&image, "numbers", &numbers(200_000));
    Ok(())
}

pub(crate) fn two_disks(kernel: &Kernel) -> Result<(), Skip> {
    let (first, second) = (image(MIB), image(3 * MIB));
    let names = [first.to_str().unwrap(), second.to_str().unwrap()];
    let mut guest = Guest::boot(kernel, &["--disk", names[0], "--disk", names[1]]);
    needs_disks(&mut guest)?;
    assert_eq!(guest.run("cat /sys/block/vda/size /sys/block/vdb/size"), "2048\n6144\n");
    let sent = guest.run("seq 1 200000 > /tmp/numbers; head -c 1048576 /tmp/numbers | md5sum");
    guest.run("dd if=/tmp/numbers of=/dev/vdb bs=4096 seek=100 count=256 conv=fsync 2>&1");
    guest.run("echo first | dd of=/dev/vda bs=512 seek=2047 conv=sync,fsync 2>&1");
    // What is read comes from the disk: memory has forgotten it, if the kernel can (since 2.6.16).
    guest.run("echo 3 > /proc/sys/vm/drop_caches");
    assert_eq!(guest.run("dd if=/dev/vdb bs=4096 skip=100 count=256 2>/dev/null | md5sum"), sent);
    guest.power_off();

    let mut expected = vec![0; 3 * MIB as usize];
    expected[409_600..][..MIB as usize].copy_from_slice(&numbers(200_000)[..MIB as usize]);
    assert!(fs::read(&second).unwrap() == expected, "the second disk");
    let mut expected = vec![0; MIB as usize];
    expected[2047 * 512..][..6].copy_from_slice(b"first\n");
    assert!(fs::read(&first).unwrap() == expected, "the first disk");
    Ok(())
}

pub(crate) fn read_only(kernel: &Kernel) -> Result<(), Skip> {
    let image = crate::kernel::file_with(&vec![b'x'; MIB as usize]);
    let mut guest = with_disk(kernel, &format!("{},ro", image.display()))?;
    assert_eq!(guest.run("head -c 5 /dev/vda; echo"), "xxxxx\n");
    let (status, printed) =
        guest.try_run("dd if=/dev/zero of=/dev/vda bs=4096 count=16 conv=fsync");
    assert_ne!(status, 0, "{printed}");
    guest.power_off();
    assert!(fs::read(&image).unwrap() == vec![b'x'; MIB as usize]);
    Ok(())
}

pub(crate) fn a_snapshot(kernel: &Kernel) -> Result<(), Skip> {
    let image = crate::kernel::file_with(&vec![b'x'; MIB as usize]);
    let mut guest = with_disk(kernel, &format!("{},snapshot", image.display()))?;
    let sent = guest.run("seq 1 50000 | head -c 65536 | md5sum");
    guest.run("seq 1 50000 | head -c 65536 | dd of=/dev/vda bs=4096 seek=3 conv=fsync 2>&1");
    guest.run("echo 3 > /proc/sys/vm/drop_caches");
    let read = "dd if=/dev/vda bs=4096 skip=3 count=16 2>/dev/null | md5sum";
    assert_eq!(guest.run(read), sent);
    guest.power_off();
    assert!(fs::read(&image).unwrap() == vec![b'x'; MIB as usize]);
    Ok(())
}

pub(crate) fn qcow2(kernel: &Kernel) -> Result<(), Skip> {
    let directory = tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (image, raw) = (path("image"), path("raw"));
    let tool = |arguments: &[&str]| {
        let output = tool("qemu-img", arguments)
            .ok_or_else(|| Skip("qemu-img isn't installed".to_owned()))?;
        assert!(output.status.success(), "{output:?}");
        Ok(())
    };
    tool(&["create", "-q", "-f", "qcow2", &image, "64M"])?;
    let mut guest = with_disk(kernel, &format!("{image},format=qcow2"))?;
    mount_new(&mut guest)?;
    guest.run("seq 1 200000 > /mnt/numbers; umount /mnt");
    guest.power_off();
    tool(&["check", "-q", &image])?;
    tool(&["convert", "-O", "raw", &image, &raw])?;
    assert_whole(Path::new(&raw), "numbers", &numbers(200_000));
    Ok(())
}

/// A limit on the length of files takes the place of a full disk: then the guest's write fails, and the guest goes on.
pub(crate) fn no_room(kernel: &Kernel) -> Result<(), Skip> {
    let image = image(1024 * MIB);
    let run = command(kernel, &["--disk", image.to_str().unwrap()]);
    let mut limited = Command::new("sh");
    // In blocks of 512 bytes: 256 MiB, which is more than the guest's memory, a file too.
    limited.args(["-c", "trap '' XFSZ; ulimit -f 524288; exec \"$0\" \"$@\""]);
    limited.arg(run.get_program()).args(run.get_args());
    let mut guest = Guest::boot_by(&mut limited);
    needs_disks(&mut guest)?;
    guest.run("seq 1 50000 | head -c 262144 > /tmp/numbers");
    let write = |mebibyte: u64| {
        let seek = mebibyte * 16;
        format!("dd if=/tmp/numbers of=/dev/vda bs=65536 seek={seek} conv=fsync 2>&1")
    };
    let (status, printed) = guest.try_run(&write(300));
    assert_ne!(status, 0, "{printed}");
    // Early kernels tell the next one as well who writes to the disk.
    guest.run(&format!("{0} || {0}", write(200)));
    guest.power_off();
    let mut written = vec![0; 4 * 65536];
    let mut file = fs::File::open(&image).unwrap();
    file.seek(SeekFrom::Start(200 * MIB)).unwrap();
    file.read_exact(&mut written).unwrap();
    assert!(written == numbers(50_000)[..written.len()]);
    Ok(())
}
