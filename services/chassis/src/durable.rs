//! Files that survive a power cut: whoever reads one finds the old contents or the new, never half of either. In: a
//! path and its contents. Out: the same on disk, for the owner's eyes only. It never follows a temporary name that
//! somebody else made: directories that this writes to belong to one process, which its caller sees to.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// Replaces the file (mode 0600) once all of `contents` is on disk.
pub fn write(path: &Path, contents: &[u8]) -> io::Result<()> {
    let (directory, temporary) = beside(path)?;
    // What a power cut left behind is not written through: it might be a link.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let written = file.write_all(contents).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written?;
    sync(directory)
}

/// Moves a file or directory to a name in the same directory, for good.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    let (directory, _) = beside(to)?;
    fs::rename(from, to)?;
    sync(directory)
}

/// Makes the directory (mode 0700) and those above it where they are not there.
pub fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// What is in the directory is there after a power cut.
pub fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// The file's contents, `None` where there is none. More than `limit` bytes are an error: what is damaged must not eat
/// the memory.
pub fn read(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut contents = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut contents)?;
    if contents.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it is longer than {limit} bytes")));
    }
    Ok(Some(contents))
}

/// The directory and a temporary name in it.
fn beside(path: &Path) -> io::Result<(&Path, PathBuf)> {
    let nameless = || io::Error::new(io::ErrorKind::InvalidInput, "this is no name of a file");
    let name = path.file_name().ok_or_else(nameless)?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(".new");
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    Ok((directory, directory.join(temporary)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_file_is_replaced_whole_and_only_its_owner_may_read_it() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("a/b");
        make_directory(&directory).unwrap();
        assert_eq!(fs::metadata(&directory).unwrap().permissions().mode() & 0o777, 0o700);
        let path = directory.join("key.pem");
        assert_eq!(read(&path, 10).unwrap(), None);
        write(&path, b"old").unwrap();
        // As after a power cut in the middle.
        fs::write(directory.join(".key.pem.new"), b"ha").unwrap();
        assert_eq!(read(&path, 10).unwrap().unwrap(), b"old");
        write(&path, b"newer").unwrap();
        assert_eq!(read(&path, 5).unwrap().unwrap(), b"newer");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
        assert_eq!(read(&path, 4).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_link_under_the_temporary_name_is_not_followed() {
        let home = tempfile::tempdir().unwrap();
        let victim = home.path().join("victim");
        fs::write(&victim, b"mine").unwrap();
        std::os::unix::fs::symlink(&victim, home.path().join(".token.new")).unwrap();
        write(&home.path().join("token"), b"secret").unwrap();
        assert_eq!(fs::read(&victim).unwrap(), b"mine");
    }
}
