//! Debian's cloud kernel: its package, and the ELF image inside the bzImage.

use super::base::Apt;
use super::digest::Digest;
use super::{ImageError, Places, Suite, failed, tool};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use thiserror::Error;

/// The package that always depends on the newest one.
const META_PACKAGE: &str = "linux-image-cloud-amd64";
const DISK_HINT: &str = "see whether the disk is full, and remove target/image-cache if a package is damaged";

/// A kernel that guests boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Version {
    /// Debian 13's.
    #[value(name = "6.12")]
    V6_12,
    /// Debian 12's.
    #[value(name = "6.1")]
    V6_1,
}

impl Version {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::V6_12, Self::V6_1];

    /// As people say it.
    pub fn name(self) -> &'static str {
        match self {
            Self::V6_12 => "6.12",
            Self::V6_1 => "6.1",
        }
    }

    /// The usual name of an image with it.
    pub fn image_name(self) -> &'static str {
        match self {
            Self::V6_12 => "default",
            Self::V6_1 => "default-6.1",
        }
    }

    fn suite(self) -> Suite {
        match self {
            Self::V6_12 => Suite::Trixie,
            Self::V6_1 => Suite::Bookworm,
        }
    }
}

/// Why a kernel package is of no use.
#[derive(Debug, Error)]
pub enum KernelError {
    /// The archive has no kernel.
    #[error("{META_PACKAGE} depends on nothing; next: cargo xtask image --refresh")]
    NoPackage,
    /// The package's files are not where they should be.
    #[error("{0} has no kernel or no modules")]
    Layout(String),
    /// Not a bzImage.
    #[error("the kernel is no bzImage of boot protocol 2.08 or later")]
    NoBzImage,
    /// Compressed in an unknown way.
    #[error("the kernel's payload begins with {0:02x?}, which is neither LZ4, XZ nor Zstandard")]
    Compression([u8; 4]),
    /// Not an ELF file inside.
    #[error("the kernel's payload is no ELF file of the promised {0} bytes")]
    NoElf(u32),
}

/// An unpacked kernel.
pub struct Kernel {
    /// As `uname -r` says it.
    pub release: String,
    /// The ELF image.
    pub image: PathBuf,
    /// The folder `lib/modules/<release>` as it goes into the guest.
    pub modules: PathBuf,
    /// Of the package.
    pub digest: Digest,
}

/// Downloads and unpacks the newest known kernel of that version.
pub fn unpack(places: &Places, version: Version, refresh: bool) -> Result<Kernel, ImageError> {
    let apt = Apt::open(places, version.suite(), refresh)?;
    let package = apt.first_dependency(META_PACKAGE)?.ok_or(KernelError::NoPackage)?;
    let digest = Digest::of_texts([package.as_str(), apt.digest()?.as_str()]);
    let (folder, there) = places.cached("kernel", &digest);
    let layout = || KernelError::Layout(package.clone());
    let release = package.strip_prefix("linux-image-").ok_or_else(layout)?.to_owned();
    let kernel = |folder: &Path| Kernel {
        image: folder.join("vmlinux"),
        modules: folder.join("modules"),
        release: release.clone(),
        digest: digest.clone(),
    };
    if there {
        println!("      {release} unchanged");
        return Ok(kernel(&folder));
    }
    println!("      {release}: download and unpack");
    let new = folder.with_extension("new");
    if new.exists() {
        fs::remove_dir_all(&new).map_err(failed("remove", &new))?;
    }
    let tree = new.join("tree");
    fs::create_dir_all(&tree).map_err(failed("make", &tree))?;
    apt.download(&package, &new)?;
    let archive = only_file(&new).ok_or_else(layout)?;
    let mut dpkg = Command::new("dpkg-deb");
    tool::run(dpkg.arg("-x").arg(&archive).arg(&tree), "unpacking the kernel package", DISK_HINT)?;
    let compressed = tree.join("boot").join(format!("vmlinuz-{release}"));
    let bytes = fs::read(&compressed).map_err(failed("read", &compressed))?;
    let image = new.join("vmlinux");
    decompress(&bytes, &new, &image)?;
    let modules = ["usr/lib/modules", "lib/modules"].map(|place| tree.join(place).join(&release));
    let modules = modules.iter().find(|place| place.is_dir()).ok_or_else(layout)?;
    fs::rename(modules, new.join("modules")).map_err(failed("move", modules))?;
    fs::remove_dir_all(&tree).map_err(failed("remove", &tree))?;
    fs::remove_file(&archive).map_err(failed("remove", &archive))?;
    fs::rename(&new, &folder).map_err(failed("rename", &new))?;
    Ok(kernel(&folder))
}

fn only_file(folder: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?.filter_map(Result::ok).map(|entry| entry.path());
    entries.into_iter().find(|path| path.extension().is_some_and(|end| end == "deb"))
}

fn decompress(bytes: &[u8], folder: &Path, image: &Path) -> Result<(), ImageError> {
    let payload = Payload::of(bytes)?;
    let packed = folder.join("payload");
    fs::write(&packed, payload.compressed).map_err(failed("write", &packed))?;
    let mut command = Command::new(payload.program);
    let elf = tool::run(command.arg("-dc").arg(&packed), "unpacking the kernel", DISK_HINT)?;
    if !elf.starts_with(b"\x7fELF") || elf.len() != payload.size as usize {
        return Err(KernelError::NoElf(payload.size).into());
    }
    fs::remove_file(&packed).map_err(failed("remove", &packed))?;
    fs::write(image, elf).map_err(failed("write", image))
}

/// The compressed kernel inside a bzImage (linux/Documentation/arch/x86/boot.rst, `payload_offset`).
#[derive(Debug, PartialEq, Eq)]
struct Payload<'a> {
    compressed: &'a [u8],
    program: &'static str,
    /// Bytes of the ELF file: the build puts them behind the compressed bytes.
    size: u32,
}

impl<'a> Payload<'a> {
    fn of(image: &'a [u8]) -> Result<Self, KernelError> {
        let word = |at: usize| -> Option<u32> {
            Some(u32::from_le_bytes(image.get(at..at.checked_add(4)?)?.try_into().ok()?))
        };
        let find = || -> Option<(&'a [u8], u32)> {
            let protocol = word(0x206)? & 0xffff;
            if image.get(0x202..0x206)? != b"HdrS" || protocol < 0x208 {
                return None;
            }
            let sectors = usize::from(*image.get(0x1f1)?);
            // 0 stands for 4, for the sake of the oldest loaders.
            let sectors = if sectors == 0 { 4 } else { sectors };
            let start = (sectors + 1).checked_mul(512)?.checked_add(word(0x248)? as usize)?;
            let end = start.checked_add(word(0x24c)? as usize)?;
            let size = word(end.checked_sub(4)?)?;
            Some((image.get(start..end - 4)?, size))
        };
        let (compressed, size) = find().ok_or(KernelError::NoBzImage)?;
        let magic: [u8; 4] =
            compressed.get(..4).and_then(|magic| magic.try_into().ok()).ok_or(KernelError::NoBzImage)?;
        let program = match magic {
            [0x02, 0x21, 0x4c, 0x18] => "lz4",
            [0xfd, b'7', b'z', b'X'] => "xz",
            [0x28, 0xb5, 0x2f, 0xfd] => "zstd",
            other => return Err(KernelError::Compression(other)),
        };
        Ok(Self { compressed, program, size })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bz_image(magic: [u8; 4]) -> Vec<u8> {
        let mut image = vec![0; 1024 + 0x20];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206] = 0x0f;
        image[0x207] = 0x02;
        image[0x248] = 0x10;
        image[0x24c] = 0x10;
        image[1040..1044].copy_from_slice(&magic);
        image[1052] = 77;
        image
    }

    #[test]
    fn the_payload_is_found() {
        let image = bz_image([0x28, 0xb5, 0x2f, 0xfd]);
        let payload = Payload::of(&image).expect("payload");
        assert_eq!((payload.program, payload.size, payload.compressed.len()), ("zstd", 77, 12));
        assert!(matches!(Payload::of(&bz_image([0x1f, 0x8b, 0, 0])), Err(KernelError::Compression(_))));
        assert!(matches!(Payload::of(b"MZ"), Err(KernelError::NoBzImage)));
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic(sectors: u8, protocol: u16, offset: u32, length: u32) {
            let mut image = bz_image([0x02, 0x21, 0x4c, 0x18]);
            image[0x1f1] = sectors;
            image[0x206..0x208].copy_from_slice(&protocol.to_le_bytes());
            image[0x248..0x24c].copy_from_slice(&offset.to_le_bytes());
            image[0x24c..0x250].copy_from_slice(&length.to_le_bytes());
            if let Ok(payload) = Payload::of(&image) {
                prop_assert!(payload.compressed.len() <= image.len());
            }
        }
    }
}
