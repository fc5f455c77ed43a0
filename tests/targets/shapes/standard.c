/* What the C library and others allocate in work that programs do: every block counts here, whatever its size.
 * (libxml2 is not among them: it throws dice for its tables.)
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <ftw.h>
#include <getopt.h>
#include <glob.h>
#include <iconv.h>
#include <locale.h>
#include <netdb.h>
#include <pwd.h>
#include <regex.h>
#include <search.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <wordexp.h>
#include <zlib.h>

#include "../handshake.h"

static void require(int holds) {
    if (!holds) {
        _exit(113);
    }
}

NAMED void print(void) {
    char *text = NULL;
    require(asprintf(&text, "%*d %s %.400f %ls", 500, 7, "text", 1.5, L"wide") > 900);
    free(text);
    size_t bytes;
    FILE *stream = open_memstream(&text, &bytes);
    for (int i = 0; i < 2000; i++) {
        fprintf(stream, "line %d\n", i);
    }
    fclose(stream);
    char *line = NULL;
    size_t room = 0;
    stream = fmemopen(text, bytes, "r");
    while (getline(&line, &room, stream) > 0) {
    }
    fclose(stream);
    free(line);
    free(text);
}

NAMED void read_files(void) {
    FILE *file = fopen("/proc/self/status", "r");
    char line[300], word[30];
    char *copy = NULL;
    require(fgets(line, sizeof line, file) != NULL && fscanf(file, "%29s %ms", word, &copy) == 2);
    free(copy);
    fclose(file);
    DIR *directory = opendir("/proc/self/task");
    require(readdir(directory) != NULL);
    closedir(directory);
    struct dirent **entries;
    int count = scandir("/proc/self/attr", &entries, NULL, alphasort);
    for (int i = 0; i < count; i++) {
        free(entries[i]);
    }
    free(entries);
    char *path = realpath("/proc/sys/../sys/kernel", NULL);
    free(path);
    path = get_current_dir_name();
    free(path);
}

NAMED void match(void) {
    regex_t expression;
    require(regcomp(&expression, "^(a|b)*([0-9]{2,5})[[:alpha:]]+\\.(c|h|cc)$", REG_EXTENDED) == 0);
    regmatch_t matches[4];
    require(regexec(&expression, "abab1234xyz.cc", 4, matches, 0) == 0);
    regfree(&expression);
    glob_t names;
    require(glob("/proc/sys/kernel/[op]*", GLOB_MARK, NULL, &names) == 0);
    globfree(&names);
    wordexp_t words;
    require(wordexp("a 'b c' ${HOME} ~root", &words, WRDE_NOCMD) == 0);
    wordfree(&words);
}

NAMED void ask(void) {
    require(getpwuid(0) != NULL);
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST}, *addresses;
    require(getaddrinfo("127.0.0.1", "80", &hints, &addresses) == 0);
    freeaddrinfo(addresses);
    require(getservbyname("http", "tcp") != NULL || 1);
}

NAMED void translate(void) {
    iconv_t conversion = iconv_open("UTF-16", "ISO-8859-1");
    require(conversion != (iconv_t)-1);
    char in[] = "text", out[50], *from = in, *to = out;
    size_t in_left = 4, out_left = sizeof out;
    require(iconv(conversion, &from, &in_left, &to, &out_left) == 0);
    iconv_close(conversion);
    locale_t other = newlocale(LC_ALL_MASK, "C.UTF-8", NULL);
    require(other != NULL);
    freelocale(other);
    setenv("SOME_VARIABLE", "a value", 1);
    unsetenv("SOME_VARIABLE");
    setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3", 1);
    time_t now = 1700000000;
    require(localtime(&now) != NULL);
}

NAMED void keep(void) {
    require(hcreate(30) != 0);
    hdestroy();
    char *copy = strdup("text"), *other = strndup("text", 2);
    copy = realloc(copy, 5000);
    other = reallocarray(other, 100, 100);
    free(copy);
    free(other);
    void *aligned = NULL;
    require(posix_memalign(&aligned, 256, 1000) == 0);
    free(aligned);
    free(aligned_alloc(64, 640));
}

static int greater(const void *one, const void *other) {
    return *(const int *)one - *(const int *)other;
}

NAMED void sort(void) {
    static int numbers[3000];
    for (int i = 0; i < 3000; i++) {
        numbers[i] = i * 37 % 3000;
    }
    qsort(numbers, 3000, sizeof numbers[0], greater);
}

NAMED void query(void) {
    sqlite3 *database;
    require(sqlite3_open(":memory:", &database) == SQLITE_OK);
    const char *sql = "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT);"
                      "CREATE INDEX i ON t(b);"
                      "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 40)"
                      " INSERT INTO t SELECT x, 'text ' || (x * 37 % 40) FROM n;"
                      "SELECT b, count(*), group_concat(a) FROM t WHERE b LIKE '%3%' GROUP BY b ORDER BY 2, 1;";
    require(sqlite3_exec(database, sql, NULL, NULL, NULL) == SQLITE_OK);
    sqlite3_close(database);
}

NAMED void compress_text(void) {
    static unsigned char text[20000], packed[30000], back[20000];
    for (size_t i = 0; i < sizeof text; i++) {
        text[i] = (unsigned char)(i * i >> 3);
    }
    uLongf packed_bytes = sizeof packed, back_bytes = sizeof back;
    require(compress2(packed, &packed_bytes, text, sizeof text, 6) == Z_OK);
    require(uncompress(back, &back_bytes, packed, packed_bytes) == Z_OK && memcmp(text, back, sizeof back) == 0);
}

NAMED void plan(void) {
    print();
    read_files();
    match();
    ask();
    translate();
    keep();
    sort();
    query();
    compress_text();
}

MAIN(plan)
