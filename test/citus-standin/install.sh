# install.sh MODE FILE... DESTINATION: like install(1), but each file appears at once, and one that is there already stays.
set -eu
mode=$1
shift
for to; do :; done
for file; do
	[ $# -gt 1 ] || break
	shift
	target=$to
	[ ! -d "$to" ] || target=${to%/}/$(basename "$file")
	cmp -s "$file" "$target" && continue
	cp "$file" "$target.new.$$"
	chmod "$mode" "$target.new.$$"
	mv -f "$target.new.$$" "$target"
done
