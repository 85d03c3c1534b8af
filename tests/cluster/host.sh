#!/usr/bin/env bash
# The first process of a host: its own processes, mounts, /tmp, /dev/shm and home folder; then its SSH server.
# Of the machine that it runs on it sees the system and the virtual environment, but no copy of the project.
#   host.sh NAME VENV PUBLIC_KEY SEED PROJECT...   (SEED: a folder that is copied into the home folder)
set -euo pipefail
name=$1 venv=$2 public_key=$(cat "$3") seed=$4
shift 4
hostname "$name"
mount -t tmpfs tmpfs /mnt
mkdir /mnt/venv /mnt/home
mount --bind "$venv" /mnt/venv
cp -a "$seed/." /mnt/home/
mount -t tmpfs -o size=512m tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t tmpfs -o size=2g,mode=1777 tmpfs /tmp
for project in "$@"; do
  mkdir -p "$project"
  mount -t tmpfs tmpfs "$project"
done
mkdir -p "$venv" /run/sshd
mount --bind /mnt/venv "$venv"
mkdir -p /mnt/home/.ssh /mnt/home/prdp
ln -s "$venv" /mnt/home/prdp/.venv
echo "$public_key" > /mnt/home/.ssh/authorized_keys
sed 's#^root:[^:]*:0:0:[^:]*:[^:]*:#root:x:0:0:root:/mnt/home:#' /etc/passwd > /run/passwd
mount --bind /run/passwd /etc/passwd
ssh-keygen -q -t ed25519 -N '' -f /run/host_key
exec /usr/sbin/sshd -D -e -h /run/host_key -o StrictModes=no -o PidFile=/run/sshd.pid -o UseDNS=no -o UsePAM=no \
  -o PasswordAuthentication=no -o PermitRootLogin=prohibit-password -o MaxStartups=100
