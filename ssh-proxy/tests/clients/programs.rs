//! Clients that are programs.

use crate::bed::Bed;
use crate::support::{Said, sh, token, vm};
use std::path::Path;
use std::process::Command;

const HOST: &str = "127.0.0.1";

/// `ssh`, `scp`, `sftp`.
pub mod openssh {
    use super::*;
    use crate::support::eventually;
    use std::io::Write;
    use std::process::Stdio;

    pub fn command(bed: &Bed) {
        bed.says(&mut bed.world.ssh(), "");
    }

    pub fn terminal(bed: &Bed) {
        bed.in_terminal(bed.world.ssh().arg("-tt"));
    }

    /// By SFTP's interactive program, by `scp` over SFTP, and by `scp`'s own protocol.
    pub fn files(bed: &Bed) {
        let at = |name| bed.world.at(name).display().to_string();
        let (blob, far, back) = (at("blob"), at("far"), at("back"));
        let host = format!("{}@{HOST}", bed.world.user());
        std::fs::write(bed.world.at("batch"), format!("put {blob} {far}\nget {far} {back}\n"))
            .expect("written");
        bed.world.tool("sftp").arg("-b").arg(bed.world.at("batch")).arg(&host).out();
        bed.copied();
        for protocol in ["-s", "-O"] {
            bed.world.tool("scp").args([protocol, &blob, &format!("{host}:{far}")]).out();
            bed.world.tool("scp").args([protocol, &format!("{host}:{far}"), &back]).out();
            bed.copied();
        }
    }

    pub fn forward(bed: &Bed) {
        bed.forwarded(false, |forward| {
            let mut command = bed.world.ssh();
            command.args(["-N", "-L", forward]);
            command
        });
    }

    /// Many commands of one master.
    pub fn many(bed: &Bed) {
        let control = bed.world.at("control");
        let mut master = bed.world.ssh().arg("-MN").arg("-S").arg(&control).spawn().expect("it starts");
        eventually("the master is there", || control.exists());
        let cat = || {
            let mut command = bed.world.ssh();
            command.arg("-S").arg(&control).args(["-o", "ProxyCommand=false", "cat"]);
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts")
        };
        let mut all: Vec<_> = (0..30).map(|_| cat()).collect();
        for (number, child) in all.iter_mut().enumerate().rev() {
            child.stdin.take().expect("piped").write_all(number.to_string().as_bytes()).expect("written");
        }
        for (number, child) in all.into_iter().enumerate() {
            let output = child.wait_with_output().expect("ended");
            assert_eq!(String::from_utf8_lossy(&output.stdout), number.to_string());
        }
        master.kill().expect("own child");
        master.wait().expect("ended");
    }
}

/// Programs that only copy files.
pub mod files {
    use super::*;

    pub fn rsync(bed: &Bed) {
        let at = |name| bed.world.at(name).display().to_string();
        let far = format!("{}@{HOST}:{}", bed.world.user(), at("far"));
        for (from, to) in [(at("blob"), far.clone()), (far, at("back"))] {
            bed.program("rsync").arg("-ae").arg(bed.openssh()).args([from, to]).out();
        }
        bed.copied();
    }

    /// A repository that holds the file is cloned, and what is pushed arrives.
    pub fn git(bed: &Bed) {
        let at = |name| bed.world.at(name).display().to_string();
        let git = |arguments: &[&str]| {
            let mut command = bed.program("git");
            command.args(["-c", "user.name=Test", "-c", "user.email=test@style.dev"]);
            command.args(["-c", "safe.directory=*", "-c", "init.defaultBranch=main"]).args(arguments);
            command.env("GIT_SSH_COMMAND", bed.openssh()).env("GIT_CONFIG_NOSYSTEM", "1");
            command.out()
        };
        let (bare, clone) = (at("bare"), at("clone"));
        let url = format!("{}@{HOST}:{bare}", bed.world.user());
        git(&["init", "-q", "--bare", &bare]);
        git(&["clone", "-q", &url, &clone]);
        sh(&format!("cp {} {clone}/blob", at("blob")));
        git(&["-C", &clone, "add", "blob"]);
        git(&["-C", &clone, "commit", "-qm", "The file"]);
        git(&["-C", &clone, "push", "-q", "origin", "HEAD:main"]);
        git(&["clone", "-q", "-b", "main", &url, &at("again")]);
        sh(&format!("cp {clone}/blob {}; cp {}/blob {}", at("far"), at("again"), at("back")));
        bed.copied();
    }

    /// A folder of the VM is mounted: a file is written, renamed and read in it.
    pub fn sshfs(bed: &Bed) {
        if !Path::new("/dev/fuse").exists() {
            eprintln!("sshfs is not tried: this host has no FUSE");
            return;
        }
        let at = |name| bed.world.at(name).display().to_string();
        let (ssh, there, mount) = (at("ssh"), at("there"), at("mount"));
        sh(&format!("mkdir {there} {mount}; echo 'exec {} \"$@\"' > {ssh}; chmod 755 {ssh}", bed.openssh()));
        sh(&format!("sed -i '1i #!/bin/sh' {ssh}"));
        let far = format!("{}@{HOST}:{there}", bed.world.user());
        let option = format!("ssh_command={ssh}");
        bed.program("sshfs").args([far.as_str(), mount.as_str(), "-o", option.as_str()]).out();
        let mounted = Mounted(mount.clone());
        sh(&format!(
            "cp {} {mount}/one; mv {mount}/one {mount}/two; cp {mount}/two {}",
            at("blob"),
            at("back")
        ));
        assert_eq!(std::fs::read_dir(&there).expect("there").count(), 1);
        drop(mounted);
        sh(&format!("cp {there}/two {}", at("far")));
        bed.copied();
    }

    struct Mounted(String);

    impl Drop for Mounted {
        fn drop(&mut self) {
            let status = std::process::Command::new("fusermount3").args(["-u", &self.0]).status();
            assert!(status.is_ok_and(|status| status.success()) || std::thread::panicking(), "not unmounted");
        }
    }

    pub fn lftp(bed: &Bed) {
        let at = |name| bed.world.at(name).display().to_string();
        // It asks for the password itself, in OpenSSH's words, and takes the user up to the comma.
        let asks = bed.openssh().replace("BatchMode=yes", "PreferredAuthentications=password");
        let script = format!(
            "set cmd:fail-exit true; set net:max-retries 1; set sftp:auto-confirm no; \
             set sftp:connect-program \"{asks} -a -x\"; open -u '{}' sftp://{HOST}:{}; \
             put {} -o {}; get {} -o {}",
            bed.world.user(),
            bed.port(),
            at("blob"),
            at("far"),
            at("far"),
            at("back")
        );
        bed.program("lftp").args(["--norc", "-c", &script]).out();
        bed.copied();
    }

    /// libssh2 in curl, which reads `known_hosts` of the home folder, and asks for user and password apart.
    pub fn curl(bed: &Bed) {
        let at = |name| bed.world.at(name).display().to_string();
        sh(&format!("mkdir -p {0}; cp {1} {0}/known_hosts", at(".ssh"), at("known_hosts")));
        let url = format!("sftp://{HOST}:{}/{}", bed.port(), at("far"));
        let user = format!("{}:{}", vm(1), token(1).expose());
        for words in [["-T", &at("blob")], ["-o", &at("back")]] {
            bed.program("curl").args(["-sS", "--max-time", "120", "-u", &user]).args(words).arg(&url).out();
        }
        bed.copied();
    }

    /// Go's x/crypto in rclone. It asks for the certificates of host keys wherever there are such, and then takes no key by
    /// itself: it must know the authority, and at this very port, since a `*` stands for no port there.
    pub fn rclone(bed: &Bed) {
        let at = |name| bed.world.at(name).display().to_string();
        sh(&format!(
            "echo \"@cert-authority [{HOST}]:{} $(cat {})\" > {}",
            bed.port(),
            at("authority.pub"),
            at("by_authority")
        ));
        // What hides passwords from onlookers, and the only form that it takes them in.
        let password = bed.program("rclone").args(["obscure", token(1).expose()]).out();
        let rclone = |words: &[&str]| {
            let mut command = bed.program("rclone");
            command.args(["--config", "/dev/null", "--retries", "1", "--low-level-retries", "1"]).args(words);
            command.env("RCLONE_SFTP_HOST", HOST).env("RCLONE_SFTP_PORT", bed.port());
            command.env("RCLONE_SFTP_USER", vm(1).as_str()).env("RCLONE_SFTP_PASS", password.trim());
            command.env("RCLONE_SFTP_KNOWN_HOSTS_FILE", at("by_authority")).out()
        };
        let far = format!(":sftp:{}", at("far"));
        rclone(&["copyto", &at("blob"), &far]);
        // A command of its own, `md5sum`, beside its SFTP on one connection.
        let sum = |said: String| said.split_whitespace().next().map(str::to_owned);
        assert_eq!(sum(rclone(&["md5sum", &far])), sum(sh(&format!("md5sum {}", at("blob")))));
        rclone(&["copyto", &far, &at("back")]);
        bed.copied();
    }
}

/// `dbclient`.
pub mod dropbear {
    use super::*;

    /// It knows hosts by name without a port, from a file in the home folder.
    fn knows(bed: &Bed) {
        let at = |name| bed.world.at(name).display().to_string();
        sh(&format!(
            "mkdir -p {0}; sed 's/^/{HOST} /' {1} > {0}/known_hosts",
            at(".ssh"),
            at("front_ed.pub")
        ));
    }

    fn client(bed: &Bed) -> Command {
        knows(bed);
        let mut command = bed.program("dbclient");
        command.args(["-p", &bed.port(), "-l", &bed.world.user()]);
        command
    }

    pub fn command(bed: &Bed) {
        bed.says(client(bed).arg(HOST), "");
    }

    pub fn terminal(bed: &Bed) {
        bed.in_terminal(client(bed).args(["-t", HOST]));
    }

    pub fn files(bed: &Bed) {
        let at = |name| bed.world.at(name).display().to_string();
        knows(bed);
        let wrapper = at("dbclient");
        std::fs::write(&wrapper, format!("#!/bin/sh\nexec dbclient -p {} \"$@\"\n", bed.port()))
            .expect("written");
        sh(&format!("chmod 700 {wrapper}"));
        let far = format!("{}@{HOST}:{}", bed.world.user(), at("far"));
        for (from, to) in [(at("blob"), far.clone()), (far, at("back"))] {
            bed.program("scp").args(["-O", "-q", "-S", &wrapper, &from, &to]).out();
        }
        bed.copied();
    }

    pub fn forward(bed: &Bed) {
        bed.forwarded(false, |forward| forwards(bed, forward));
    }

    /// It has no other channels beside its session.
    pub fn many(bed: &Bed) {
        bed.forwarded(true, |forward| forwards(bed, forward));
    }

    fn forwards(bed: &Bed, forward: &str) -> Command {
        let mut command = client(bed);
        command.args(["-N", "-L", forward, HOST]);
        command
    }
}

/// `plink`, `psftp` and `pscp`, which have user and password apart.
pub mod putty {
    use super::*;

    fn client(bed: &Bed, program: &str) -> Command {
        let mut command = bed.program(program);
        command.args(["-batch", "-P", &bed.port(), "-l", vm(1).as_str(), "-pw", token(1).expose()]);
        command.args(["-hostkey", &bed.fingerprint]);
        command
    }

    pub fn command(bed: &Bed) {
        let prompts = "Keyboard-interactive authentication prompts from server:\r\n\
                       End of keyboard-interactive prompts from server\r\n";
        bed.says(client(bed, "plink").args(["-ssh", HOST]), prompts);
    }

    pub fn terminal(bed: &Bed) {
        bed.in_terminal(client(bed, "plink").args(["-ssh", "-t", HOST]));
    }

    pub fn files(bed: &Bed) {
        let at = |name| bed.world.at(name).display().to_string();
        let (blob, far, back) = (at("blob"), at("far"), at("back"));
        let batch = at("batch");
        std::fs::write(&batch, format!("put {blob} {far}\nget {far} {back}\n")).expect("written");
        client(bed, "psftp").args(["-b", &batch, HOST]).out();
        bed.copied();
        client(bed, "pscp").args(["-q", &blob, &format!("{HOST}:{far}")]).out();
        client(bed, "pscp").args(["-q", &format!("{HOST}:{far}"), &back]).out();
        bed.copied();
    }

    pub fn forward(bed: &Bed) {
        bed.forwarded(false, |forward| forwards(bed, forward));
    }

    pub fn many(bed: &Bed) {
        bed.forwarded(true, |forward| forwards(bed, forward));
    }

    fn forwards(bed: &Bed, forward: &str) -> Command {
        let mut command = client(bed, "plink");
        command.args(["-ssh", "-N", "-L", forward, HOST]);
        command
    }
}
