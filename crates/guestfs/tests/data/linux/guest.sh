#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/sbin:/bin:/usr/sbin:/usr/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for m in virtio_pci virtio_blk dm-mod dm-mirror dm-raid dm-snapshot dm-thin-pool raid0 raid1 raid10 raid456 linear; do modprobe $m || echo NOMOD $m; done
sleep 1
fill() { dd if=/pattern of=$1 bs=64k skip=$2 count=$3 seek=${4:-0} conv=notrunc 2>/dev/null || echo FAILFILL $*; }
sum() { sync; echo 3 > /proc/sys/vm/drop_caches; echo "SUM $2 $(blockdev --getsize64 $1) $(sha256sum < $1 | cut -d' ' -f1)"; }
md() { # number name spec...
 n=$1; name=$2; shift 2
 mdadm --create /dev/md$n --run --homehost=any --name=$name "$@" >/tmp/out 2>&1 || { echo FAILMD $name; cat /tmp/out; }
 for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do grep -qE 'resync|recovery|DELAYED|PENDING' /proc/mdstat || break; sleep 1; done
 fill /dev/md$n $n 400
}
D() { for d in $2; do echo /dev/vd$d$1; done; }
B="--bitmap=none"
md 1 linear -e1.2 -l linear -n3 $(D 1 "f g h")
md 2 raid0 -e1.2 -l0 -c64 -n3 $(D 2 "f g h")
md 3 raid1 -e1.2 -l1 -n2 $B $(D 3 "f g")
md 4 raid4 -e1.2 -l4 -c16 -n3 $B $(D 4 "f g h")
md 5 raid5 -e1.2 -l5 -c64 -n4 $B $(D 5 "f g h i")
md 6 raid5ra -e1.2 -l5 -c32 -n4 --layout=right-asymmetric $B $(D 6 "f g h i")
md 7 raid6 -e1.2 -l6 -c16 -n5 $B $(D 7 "f g h i j")
md 8 raid10n2 -e1.2 -l10 -c64 -n5 --layout=n2 $B $(D 8 "f g h i j")
md 9 raid10f2 -e1.2 -l10 -c32 -n4 --layout=f2 $B $(D 9 "f g h i")
md 10 raid10o2 -e1.2 -l10 -c32 -n5 --layout=o2 $B $(D 10 "f g h i j")
md 11 raid1old -e0.90 -l1 -n2 $B $(D 11 "f g")
md 12 raid5end -e1.0 -l5 -c64 -n3 $B $(D 12 "f g h")
md 13 raid0start -e1.1 -l0 -c16 -n4 $(D 13 "f g h i")
md 14 raid5stale -e1.2 -l5 -c64 -n4 --layout=left-asymmetric $B $(D 14 "f g h i")
mdadm /dev/md14 --fail /dev/vdg14 --remove /dev/vdg14; fill /dev/md14 100 60 20
md 15 raid0uneven -e1.2 -l0 -c64 -n4 $(D 15 "f g h i")
md 16 raid6ddf -e1.2 -l6 -c16 -n5 --layout=ddf-N-restart $B $(D 16 "f g h i j")
md 17 raid6rs -e1.2 -l6 -c16 -n5 --layout=right-symmetric $B $(D 17 "f g h i j")
md 18 raid5oldend -e0.90 -l5 -c64 -n3 $B $(D 18 "f g h")
cat /proc/mdstat
for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18; do sum /dev/md$n md$n; done
mdadm --stop --scan
# LVM
P="/dev/vda /dev/vdb /dev/vdc /dev/vdd /dev/vde"
pvcreate -q --metadatasize 60k --dataalignment 128k /dev/vda /dev/vdb /dev/vdc /dev/vdd
pvcreate -q --metadatacopies 0 /dev/vde
vgcreate -q -s 512k vg $P
L="lvcreate -q -y -Wn -Zn -n"
$L one -L 2m vg /dev/vda
$L lin -L 3m vg /dev/vda
lvextend -q -L +4m vg/lin /dev/vde
$L str -L 6m -i3 -I16k vg
$L mir --type mirror -m1 --mirrorlog core --nosync -L 4m vg
$L mirlog --type mirror -m1 -L 4m vg /dev/vda /dev/vdb /dev/vdc
$L r1 --type raid1 -m1 -L 4m vg
$L r0 --type raid0 -i3 -I32k -L 6m vg
$L r4 --type raid4 -i2 -I16k -L 4m vg
$L r5 --type raid5 -i3 -I16k -L 6m vg
$L r6 --type raid6 -i3 -I16k -L 6m vg
$L r10 --type raid10 -i2 -m1 -I16k -L 4m vg
lvcreate -q -y --type thin-pool -c 64k -L 24m --poolmetadatasize 4m -n pool vg
lvcreate -q -y -V 64m --thin -n thin1 vg/pool
n=20; for v in one lin str mir mirlog r1 r0 r4 r5 r6 r10; do n=$((n+1)); fill /dev/vg/$v $n 200; done
fill /dev/vg/thin1 40 40; fill /dev/vg/thin1 50 100 400
lvcreate -q -y -s -kn -n thin2 vg/thin1
fill /dev/vg/thin1 60 20 10; fill /dev/vg/thin2 70 20 420
blkdiscard -o 0 -l 262144 /dev/vg/thin2
lvcreate -q -y -V 1t --thin -n thinbig vg/pool
fill /dev/vg/thinbig 80 3 5; fill /dev/vg/thinbig 90 3 9000000
lvcreate -q -y -s -L 4m -c 16k -n snap vg/lin
fill /dev/vg/lin 95 10 5; fill /dev/vg/snap 99 4 30
lvchange -an vg/mir 2>/dev/null; lvchange -ay vg/mir
for i in 1 2 3 4 5 6 7; do lvchange -q --addtag t$i vg/one; done
lvcreate -q -y -n ext -L 2m --permission r -an -Zn vg 2>/dev/null
lvs -a -o lv_name,segtype,devices vg; 
for i in 1 2 3 4 5 6 7 8 9 10; do lvs --noheadings -o copy_percent vg | grep -qE '^ *[0-9]' || break; lvs --noheadings -o copy_percent vg | grep -E '[0-9]' | grep -vq '100.00' || break; sleep 1; done
for v in one lin str mir mirlog r1 r0 r4 r5 r6 r10 thin1 thin2 snap; do sum /dev/vg/$v lv-$v; done
echo "SUM lv-thinbig $(blockdev --getsize64 /dev/vg/thinbig) $(dd if=/dev/vg/thinbig bs=64k count=20 2>/dev/null | sha256sum | cut -d' ' -f1) $(dd if=/dev/vg/thinbig bs=64k skip=8999998 count=8 2>/dev/null | sha256sum| cut -d' ' -f1)"
vgchange -q -an vg; vgs -o+seqno; sync
echo DONE; poweroff -f
