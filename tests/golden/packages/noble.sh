sudo apt-get update && sudo apt-get -q -o DPkg::Lock::Timeout=300 install -y --no-install-recommends debian-archive-keyring e2fsprogs mmdebstrap qemu-system-x86 seabios util-linux
