/* Shapes that are called back by the C library and by other libraries. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <ftw.h>
#include <libxml/parser.h>
#include <link.h>
#include <pthread.h>
#include <search.h>
#include <sqlite3.h>
#include <stdio.h>
#include <zlib.h>

#include "shapes.h"

static void require(int holds) {
    if (!holds) {
        _exit(113);
    }
}

static int compare(const void *one, const void *other) {
    FOLLOW();
    return *(const int *)one - *(const int *)other;
}

void shape_qsort(void) {
    int numbers[] = {5, 3, 1, 4};
    qsort(numbers, 4, sizeof numbers[0], compare);
    require(numbers[0] == 1);
}

static int compare_r(const void *one, const void *other, void *data) {
    return compare(one, other) + (data != NULL) * 0;
}

/* More than qsort sorts on the stack. */
void shape_qsort_r(void) {
    static int numbers[2000];
    for (int i = 0; i < 2000; i++) {
        numbers[i] = i * 37 % 2000;
    }
    qsort_r(numbers, 2000, sizeof numbers[0], compare_r, numbers);
    require(numbers[7] == 7);
}

void shape_bsearch(void) {
    int numbers[] = {1, 3, 4, 5}, key = 4;
    require(bsearch(&key, numbers, 4, sizeof numbers[0], compare) == &numbers[2]);
}

void shape_tsearch(void) {
    static int numbers[] = {1, 3};
    void *root = NULL;
    tsearch(&numbers[0], &root, compare);
    tsearch(&numbers[1], &root, compare);
    require(tfind(&numbers[1], &root, compare) != NULL);
    tdelete(&numbers[0], &root, compare);
    tdelete(&numbers[1], &root, compare);
}

static void visit(const void *node, VISIT order, int depth) {
    (void)node, (void)order, (void)depth;
    FOLLOW();
}

static int order(const void *one, const void *other) {
    return *(const int *)one - *(const int *)other;
}

void shape_twalk(void) {
    static int numbers[] = {1, 3, 0};
    void *root = NULL;
    for (int i = 0; i < 3; i++) {
        tsearch(&numbers[i], &root, order);
    }
    twalk(root, visit);
    for (int i = 0; i < 3; i++) {
        tdelete(&numbers[i], &root, order);
    }
}

static int see_object(struct dl_phdr_info *info, size_t bytes, void *data) {
    (void)info, (void)bytes, (void)data;
    FOLLOW();
    return 1;
}

void shape_objects(void) {
    dl_iterate_phdr(see_object, NULL);
    NO_TAIL_CALL();
}

static void follow_once(void) {
    FOLLOW();
}

void shape_once(void) {
    pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, follow_once);
}

static void *run_thread(void *argument) {
    FOLLOW();
    return argument;
}

void shape_thread(void) {
    pthread_t thread;
    require(pthread_create(&thread, NULL, run_thread, NULL) == 0);
    require(pthread_join(thread, NULL) == 0);
}

static void *leave_thread(void *argument) {
    (void)argument;
    FOLLOW();
    pthread_exit(NULL);
}

static void clean_up(void *argument) {
    (void)argument;
    FOLLOW();
}

static void *leave_with_clean_up(void *argument) {
    pthread_cleanup_push(clean_up, argument);
    pthread_exit(NULL);
    pthread_cleanup_pop(1);
    return NULL;
}

void shape_thread_exit(void) {
    pthread_t thread;
    require(pthread_create(&thread, NULL, leave_thread, NULL) == 0);
    require(pthread_join(thread, NULL) == 0);
}

/* A handler that is called while the thread's stack is unwound. */
void shape_thread_clean_up(void) {
    pthread_t thread;
    require(pthread_create(&thread, NULL, leave_with_clean_up, NULL) == 0);
    require(pthread_join(thread, NULL) == 0);
}

static void destroy(void *value) {
    (void)value;
    FOLLOW();
}

static void *set_key(void *argument) {
    pthread_setspecific(*(pthread_key_t *)argument, argument);
    return NULL;
}

/* The destructor of what a thread kept. */
void shape_thread_key(void) {
    pthread_key_t key;
    pthread_t thread;
    require(pthread_key_create(&key, destroy) == 0);
    require(pthread_create(&thread, NULL, set_key, &key) == 0);
    require(pthread_join(thread, NULL) == 0);
    require(pthread_key_delete(key) == 0);
}

static ssize_t cookie_write(void *cookie, const char *text, size_t bytes) {
    (void)cookie, (void)text;
    FOLLOW();
    return (ssize_t)bytes;
}

/* A stream's own function, called from deep inside printf. */
void shape_printf(void) {
    cookie_io_functions_t functions = {.write = cookie_write};
    FILE *stream = fopencookie(NULL, "w", functions);
    require(stream != NULL && setvbuf(stream, NULL, _IONBF, 0) == 0);
    require(fprintf(stream, "%s %d %f\n", "text", 7, 1.5) > 0);
    require(fclose(stream) == 0);
}

static int select_entry(const struct dirent *entry) {
    (void)entry;
    FOLLOW();
    return 0;
}

void shape_scandir(void) {
    struct dirent **entries;
    require(scandir("/proc/self/task", &entries, select_entry, NULL) == 0);
    free(entries);
}

static int see_file(const char *name, const struct stat *stat, int kind, struct FTW *where) {
    (void)name, (void)stat, (void)kind, (void)where;
    FOLLOW();
    return 0;
}

void shape_file_tree(void) {
    require(nftw("/proc/self/task", see_file, 4, FTW_PHYS) == 0);
}

static void sql_function(sqlite3_context *context, int count, sqlite3_value **values) {
    (void)count, (void)values;
    FOLLOW();
    sqlite3_result_int(context, 1);
}

static int see_row(void *data, int count, char **values, char **names) {
    (void)data, (void)count, (void)values, (void)names;
    return 0;
}

/* A function of SQL. */
void shape_sqlite(void) {
    sqlite3 *database;
    require(sqlite3_open(":memory:", &database) == SQLITE_OK);
    sqlite3_create_function(database, "follow", 0, SQLITE_UTF8, NULL, sql_function, NULL, NULL);
    require(sqlite3_exec(database, "WITH t(x) AS (VALUES (1), (2)) SELECT max(x) FROM t WHERE follow() > 0",
                         see_row, NULL, NULL) == SQLITE_OK);
    sqlite3_close(database);
}

static void start_element(void *data, const xmlChar *name, const xmlChar **attributes) {
    (void)data, (void)name, (void)attributes;
    FOLLOW();
}

void shape_xml(void) {
    static const char text[] = "<a><b c='d'>e</b></a>";
    xmlSAXHandler handler = {.startElement = start_element};
    require(xmlSAXUserParseMemory(&handler, NULL, text, sizeof text - 1) == 0);
}

static void *z_allocate(void *opaque, unsigned count, unsigned bytes) {
    (void)opaque;
    FOLLOW();
    return calloc(count, bytes);
}

static void z_free(void *opaque, void *block) {
    (void)opaque;
    free(block);
}

void shape_zlib(void) {
    z_stream stream = {.zalloc = z_allocate, .zfree = z_free};
    require(deflateInit(&stream, 9) == Z_OK);
    deflateEnd(&stream);
}

void library_call_back(void (*call)(void));
int library_sort(int *numbers, int count, int (*compare)(int, int));

/* Through a library of the program's own. */
void shape_library(void) {
    library_call_back(follow_once);
}

static int greater(int one, int other) {
    FOLLOW();
    return one > other;
}

void shape_library_sort(void) {
    int numbers[] = {3, 1, 2};
    require(library_sort(numbers, 3, greater) == 3 && numbers[0] == 1);
}

extern void (*library_hook)(void);

/* A library that is loaded for the call and unloaded after it, unless it is loaded already. */
static void *load_plugin(void) {
    Dl_info info;
    char file[4096];
    require(dladdr((void *)library_call_back, &info) != 0);
    const char *end = strrchr(info.dli_fname, '/');
    snprintf(file, sizeof file, "%.*s/libplugin.so", (int)(end - info.dli_fname), info.dli_fname);
    void *plugin = dlopen(file, RTLD_LAZY);
    require(plugin != NULL);
    return plugin;
}

void keep_plugin(void) {
    load_plugin();
}

/* Calls a function of the plugin's. */
static void call_plugin(const char *name) {
    void *plugin = load_plugin();
    void (*call_back)(void (*)(void));
    *(void **)&call_back = dlsym(plugin, name);
    call_back(follow_once);
    require(dlclose(plugin) == 0);
    FOLLOW();
}

void shape_plugin(void) {
    call_plugin("plugin_call_back");
}

/* The first call of a function that is bound at its first call, and that a resolver chooses. */
void shape_first_call(void) {
    call_plugin("plugin_first_call");
}

/* The plugin's constructor, or its destructor, where it is not loaded yet; else a plain call. */
void shape_constructor(void) {
    library_hook = follow_once;
    void *plugin = load_plugin();
    library_hook = NULL;
    require(dlclose(plugin) == 0);
    FOLLOW();
}

void shape_destructor(void) {
    void *plugin = load_plugin();
    library_hook = follow_once;
    require(dlclose(plugin) == 0);
    library_hook = NULL;
    FOLLOW();
}

void library_without_cfi(void (*call)(void));
void library_without_anything(void (*call)(void));

void shape_without_cfi(void) {
    library_without_cfi(follow_once);
    NO_TAIL_CALL();
}

void shape_without_anything(void) {
    library_without_anything(follow_once);
    NO_TAIL_CALL();
}
