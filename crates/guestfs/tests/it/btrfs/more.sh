# Fills a mounted Btrfs with what only Btrfs has. Words: the mount point, how many names one file gets in one folder.
set -euo pipefail
cd "$1"
export links="${2:-500}"
btrfs -q subvolume create sub
echo "in a subvolume" > sub/file
btrfs -q subvolume create sub/inner
echo "further in" > sub/inner/file
ln sub/file sub/again
btrfs -q subvolume snapshot sub snapshot
echo "changed" > sub/file
btrfs -q subvolume snapshot -r sub "read only"
mkdir -p place/for/a
btrfs -q subvolume create place/for/a/subvolume
seq 20000 > place/for/a/subvolume/numbers
seq 30000 > numbers
cp --reflink=always numbers reflink
printf 'other' | dd of=reflink bs=1 seek=70000 conv=notrunc status=none
head -c 1000000 /dev/urandom > random
cp --reflink=always random shared
truncate -s 300000 shared
truncate -s 900000 shared
head -c 500000 /dev/zero | tr '\0' 'z' > even
fallocate -p -o 100000 -l 200000 even
: > plain; chattr +C plain
head -c 2000000 /dev/urandom > plain
printf 'again' | dd of=plain bs=1 seek=500000 conv=notrunc status=none
for size in 1 100 2000 2047 2048 2049 3000 4095 4096 4097 8192 131071 131072 131073 400000; do
    yes "a line that packs well, $size" | head -c "$size" > "text-$size" || true
done
fallocate -l 2M reserved; printf 'here' | dd of=reserved bs=1 seek=1000000 conv=notrunc status=none
python3 - <<'P'
import os
os.mkdir("linked")
open("linked/first", "w").write("many names")
# So many and so long that they do not fit into one item: extended references.
for number in range(int(os.environ["links"])):
    os.link("linked/first", f"linked/{number:04d}" + "n" * 200)
os.mkdir("dense")
for number in range(3000):
    os.close(os.open(f"dense/{number * 7919 % 1000003}", os.O_CREAT | os.O_WRONLY))
with open("pieces", "wb") as file:
    for number in range(700):
        file.seek(number * 20000)
        file.write(bytes([number % 251]) * 5000)
P
