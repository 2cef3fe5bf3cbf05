-- Inserts, an index, a join, an aggregate and a sort, all in memory; the table's size is given by the program's caller.
CREATE TABLE size (n INTEGER);
INSERT INTO size VALUES (@SIZE@);
CREATE TABLE item (id INTEGER PRIMARY KEY, key INTEGER, name TEXT, value REAL);
WITH RECURSIVE row(k) AS (SELECT 1 UNION ALL SELECT k + 1 FROM row WHERE k < (SELECT n FROM size))
    INSERT INTO item SELECT k, (k * 7919) % 1009, 'name-' || (k * 31 % 997), k / 7.0 FROM row;
CREATE INDEX by_key ON item (key);
SELECT count(*), sum(a.value) FROM item a JOIN item b ON a.key = b.key WHERE b.id < 100;
SELECT name, count(*), round(avg(value), 3) FROM item GROUP BY name ORDER BY 3 DESC LIMIT 10;
UPDATE item SET value = value * 2 WHERE key % 3 = 0;
SELECT round(sum(value), 3), max(name) FROM item WHERE name LIKE '%7';
