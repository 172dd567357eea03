# Computes or writes, with checks, for as long as the guest lives: burden.sh FOLDER WHAT.
# Each round that ends well is counted in /run/burden.WHAT; the first that does not is told in /run/burden.WHAT.failed.
folder=$1 what=$2 rounds=0 status=0
tool() { "$folder/ld.so" --library-path "$folder" "$folder/$1" "${@:2}"; }
once() {
  case $what in
    stress) tool stress-ng --verify --cpu 1 --vm 1 --vm-bytes 32M --timeout 10s ;;
    fio)
      tool fio --name=verify --filename=/root/fio.data --size=8M --rw=randwrite --bs=4k --direct=1 --ioengine=psync \
        --verify=crc32c --do_verify=1 --verify_fatal=1 --randrepeat=0
      ;;
  esac
}
while once >"/run/burden.$what.log" 2>&1 || { status=$?; false; }; do
  rounds=$((rounds + 1))
  echo "$rounds" >"/run/burden.$what.new"
  mv "/run/burden.$what.new" "/run/burden.$what"
done
{ echo "round $((rounds + 1)) ended with $status"; cat "/run/burden.$what.log"; } >"/run/burden.$what.failed"
